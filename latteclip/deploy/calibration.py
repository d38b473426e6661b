"""Calibrate probabilities of labels by a person's answers about some of them.

Platt's calibration (1999): the log-odds of a probability times a slope, whose inverse is called
temperature, plus an intercept. Both are fitted to answers by maximum likelihood.

Letters: n answers, N images.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

Floats = npt.NDArray[np.float64]
FOLDS = 5
BINS = 10  # of equal width
MARGIN = 1e-6  # distance of probabilities from 0 and 1


@dataclass(frozen=True)
class Calibration:
    """A correction of probabilities, and its error."""

    slope: float
    intercept: float
    answers: int
    error_before: float  # expected calibration error over the answers
    error: float  # the same after correction by the answers of the other folds

    def __call__(self, probabilities: Floats) -> Floats:
        """Return corrected probabilities [N] in the same order."""
        return _corrected(probabilities, self.slope, self.intercept)


def calibrate(probabilities: Floats, right: Floats, weights: Floats) -> Calibration:
    """Fit a calibration to answers.

    The error is cross-validated: each of FOLDS parts is corrected by a fit to the others.

    Args:
        probabilities: [n] of the labels that were answered about.
        right: [n] 1 where the label is right, else 0.
        weights: [n] how many images each answer stands for.
    """
    weights = weights / weights.mean()
    held_out = np.empty(len(right))
    for fold in range(FOLDS):
        out = np.arange(len(right)) % FOLDS == fold
        fitted = _fit(probabilities[~out], right[~out], weights[~out])
        held_out[out] = _corrected(probabilities[out], *fitted)
    before, after = (
        expected_calibration_error(each, right, weights) for each in (probabilities, held_out)
    )
    return Calibration(*_fit(probabilities, right, weights), len(right), before, after)


def _corrected(probabilities: Floats, slope: float, intercept: float) -> Floats:
    return np.asarray(expit(slope * _log_odds(probabilities) + intercept))


def _log_odds(probabilities: Floats) -> Floats:
    return np.asarray(logit(probabilities.clip(MARGIN, 1 - MARGIN)))


def _fit(probabilities: Floats, right: Floats, weights: Floats) -> tuple[float, float]:
    """Return slope, at least 0, and intercept. Few answers leave them near 1 and 0."""
    odds, sign = _log_odds(probabilities), 2 * right - 1

    def loss(free: Floats) -> float:
        likelihood = weights @ log_expit(sign * (free[0] * odds + free[1]))
        return float(((free[0] - 1) ** 2 + free[1] ** 2) / 2 - likelihood)

    slope, intercept = minimize(loss, [1.0, 0.0], bounds=[(0, None), (None, None)]).x
    return float(slope), float(intercept)


def expected_calibration_error(probabilities: Floats, right: Floats, weights: Floats) -> float:
    """Return the mean gap between probability and accuracy over BINS (Guo et al. 2017).

    The arguments are those of `calibrate`. Few answers overstate the error, since the accuracy of a
    bin is then far off by chance.
    """
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(place, weights * (right - probabilities), BINS)
    return float(np.abs(gaps).sum() / weights.sum())
