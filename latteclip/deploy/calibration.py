"""Probabilities of labels, corrected by what a person answered about some of them.

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
CLOSEST = 1e-6  # to 0 and 1 that a probability is taken for


@dataclass(frozen=True)
class Calibration:
    """A correction of probabilities, and what it is worth."""

    slope: float
    intercept: float
    answers: int
    error_before: float  # expected calibration error over the answers as they come
    error: float  # the same of probabilities corrected by the other folds' answers alone

    def __call__(self, probabilities: Floats) -> Floats:
        """Corrected probabilities [N]; their order stays."""
        return corrected(probabilities, (self.slope, self.intercept))


def calibrate(probabilities: Floats, right: Floats, weights: Floats) -> Calibration:
    """Fit a calibration to answers.

    No answer reports the error of a fit in which it has a part: of FOLDS parts, each is corrected
    by what the others teach.

    Args:
        probabilities: [n] of the labels that were answered about.
        right: [n] 1 where the label is right, else 0.
        weights: [n] how many images each answer stands for.
    """
    weights = weights / weights.mean()
    apart = np.empty(len(right))
    folds = np.arange(len(right)) % FOLDS
    for fold in range(FOLDS):
        out, rest = folds == fold, folds != fold
        found = _fit(probabilities[rest], right[rest], weights[rest])
        apart[out] = corrected(probabilities[out], found)
    slope, intercept = _fit(probabilities, right, weights)
    return Calibration(
        slope,
        intercept,
        len(right),
        expected_calibration_error(probabilities, right, weights),
        expected_calibration_error(apart, right, weights),
    )


def corrected(probabilities: Floats, fitted: tuple[float, float]) -> Floats:
    """Probabilities [N] by a slope and an intercept."""
    found: Floats = expit(fitted[0] * _log_odds(probabilities) + fitted[1])
    return found


def _log_odds(probabilities: Floats) -> Floats:
    found: Floats = logit(probabilities.clip(CLOSEST, 1 - CLOSEST))
    return found


def _fit(probabilities: Floats, right: Floats, weights: Floats) -> tuple[float, float]:
    """Slope, at least 0, and intercept; where answers tell little, they stay near 1 and 0."""
    odds, sign = _log_odds(probabilities), 2 * right - 1

    def loss(free: Floats) -> float:
        likelihood = weights @ log_expit(sign * (free[0] * odds + free[1]))
        return float(((free[0] - 1) ** 2 + free[1] ** 2) / 2 - likelihood)

    slope, intercept = minimize(loss, [1.0, 0.0], bounds=[(0, None), (None, None)]).x
    return float(slope), float(intercept)


def expected_calibration_error(probabilities: Floats, right: Floats, weights: Floats) -> float:
    """How far probabilities are from shares that are right (Guo et al. 2017), in BINS of both.

    Few answers overstate it: a bin's share is then far from the truth by chance.

    Args:
        probabilities: [n].
        right: [n] 1 or 0.
        weights: [n].
    """
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(place, weights * (right - probabilities), BINS)
    return float(np.abs(gaps).sum() / weights.sum())
