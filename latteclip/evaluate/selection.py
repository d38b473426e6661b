"""Which of several classifiers to take, without labels: votes of images that were left out judge.

A caption (or a multimodal model that is asked) votes for the class of its image. How far the
predictions of a classifier agree with votes that neither it nor any label was learned from is
large where it is right, whatever the votes' own mistakes are, as long as they do not share them.

Letters: K candidates, n judged images, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from latteclip.core.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int_]
# Objectives that can be chosen, the simplest first; those that train are equally simple.
SIMPLICITY = {"zero_shot": 0, "zero_shot_calibrated": 1, "image_prototypes": 2}
TRAINED = 3
ROUNDING = 1e-9  # one image more is a standard error exactly, and no lead
# Which is taken where nothing judges.
SAFEST = ("zero_shot_calibrated", "zero_shot", "image_prototypes")


@dataclass(frozen=True)
class Candidate:
    """A classifier that may be chosen."""

    method: str
    seed: int
    objective: str
    marks: Sequence[str] = ()  # keys of `results.MARKS`

    @property
    def simplicity(self) -> int:
        """Place in SIMPLICITY."""
        return SIMPLICITY.get(self.objective, TRAINED)

    def name(self, among: Sequence["Candidate"]) -> str:
        """Its method, and its seed where the method has several."""
        several = sum(one.method == self.method for one in among) > 1
        return f"{self.method} (seed {self.seed})" if several else self.method


@dataclass(frozen=True)
class Judge:
    """How far K candidates agree with votes for n images that were left out."""

    agreements: Floats  # [K, n]: the vote's probability of the class that a candidate predicts

    @classmethod
    def of(cls, votes: Floats, predictions: Sequence[Ints]) -> Self:
        """From votes [n, C], probabilities, and the classes [n] that each candidate predicts."""
        rows = np.arange(len(votes))
        return cls(np.stack([votes[rows, own] for own in predictions]).astype(np.float64))

    @property
    def n(self) -> int:
        return len(self.agreements[0])

    @property
    def means(self) -> Floats:
        """[K]."""
        found: Floats = self.agreements.mean(axis=1)
        return found

    def lead(self, one: int, other: int) -> tuple[float, float]:
        """By how much one candidate agrees more than another, and the standard error of that."""
        differences = self.agreements[one] - self.agreements[other]
        return float(differences.mean()), standard_error(differences)

    def leads(self, one: int, other: int) -> bool:
        """Whether one agrees more than another by more than a standard error."""
        lead, error = self.lead(one, other)
        return lead > error + ROUNDING


def standard_error(values: Floats) -> float:
    """Of the mean of values [n], n at least 2."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def choose(candidates: Sequence[Candidate], judge: Judge | str) -> int:
    """The candidate to take; labels have no part in it.

    Of those that the best one does not lead by more than a standard error (paired, over the same
    images) the simplest; of equally simple ones that which agrees most. One that was trained is
    only taken if it leads calibrated zero-shot, or else plain zero-shot, by more than a standard
    error.

    Args:
        candidates: K.
        judge: of them, or why there is none: then the safest is taken.
    """
    allowed = _allowed(candidates)
    if isinstance(judge, str):
        return min(allowed, key=lambda i: (_safety(candidates[i]), i))
    means, anchor = judge.means, _anchor(candidates, allowed)
    if anchor is not None:
        allowed = [
            i for i in allowed if candidates[i].simplicity < TRAINED or judge.leads(i, anchor)
        ]
    best = max(allowed, key=lambda i: (means[i], -i))
    ties = [i for i in allowed if not judge.leads(best, i)]
    return min(ties, key=lambda i: (candidates[i].simplicity, -means[i], i))


def _allowed(candidates: Sequence[Candidate]) -> list[int]:
    """Those that saw no label and did not collapse; if all did, all that saw no label."""
    unlabelled = [i for i, one in enumerate(candidates) if "supervised" not in one.marks]
    sound = [i for i in unlabelled if "collapsed" not in candidates[i].marks]
    if not unlabelled:
        raise UserError("No model can be chosen, for all of them saw labels; run another method.")
    return sound or unlabelled


def _safety(candidate: Candidate) -> int:
    """Place in SAFEST; trained ones come last."""
    return [*SAFEST, candidate.objective].index(candidate.objective)


def _anchor(candidates: Sequence[Candidate], allowed: Sequence[int]) -> int | None:
    """What a trained candidate has to beat."""
    for objective in ("zero_shot_calibrated", "zero_shot"):
        for i in allowed:
            if candidates[i].objective == objective:
                return i
    return None


def reason(candidates: Sequence[Candidate], chosen: int, judge: Judge | str) -> str:
    """Why it was chosen, in one sentence."""
    names = [one.name(candidates) for one in candidates]
    if isinstance(judge, str):
        return f"{names[chosen]} is taken as the safest, for nothing judges: {judge}."
    percent = [f"{100 * mean:.1f} %" for mean in judge.means]
    begin = (
        f"{names[chosen]} agrees with {percent[chosen]} of the votes of {judge.n} images that were "
        "left out"
    )
    others = [i for i in _allowed(candidates) if i != chosen]
    if not others:
        return f"{begin}, and no other model can be chosen."
    rival = max(others, key=lambda i: (judge.means[i], -i))
    end = ": nothing here beat it" if candidates[chosen].objective == "zero_shot" else ""
    if judge.means[rival] <= judge.means[chosen]:
        zero_shot = [i for i in others if candidates[i].objective == "zero_shot"]
        told = (zero_shot or [rival])[0]
        return f"{begin}, {names[told]} with {percent[told]}{end}."
    over, anchor = chosen, _anchor(candidates, others)
    if judge.leads(rival, chosen) and anchor is not None:
        over = anchor
    lead, error = judge.lead(rival, over)
    return (
        f"{begin}; {names[rival]} agrees with {percent[rival]}, but its lead over {names[over]}, "
        f"{100 * lead:.1f} points, is not above the standard error, {100 * error:.1f}{end}."
    )


def rank_correlation(agreements: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Spearman's, of two figures of the same candidates; None where it is not defined."""
    pair = pd.DataFrame({"one": agreements, "other": accuracies})
    value = float(pair.corr(method="spearman").to_numpy()[0, 1])
    return None if math.isnan(value) else value
