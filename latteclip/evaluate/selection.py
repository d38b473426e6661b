"""Which of several classifiers to take, without labels: votes that they did not learn from judge.

A caption (or a multimodal model that is asked) votes for the class of its image. Classifiers that
are right more often agree more with such votes, whatever mistakes the votes make by themselves, as
long as the classifiers do not share them. Those that train nothing are judged by many images, each
without its own part in the classifier; those that were trained by the images that were held out.

Letters: K candidates, n judging images, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from latteclip.core.errors import UserError
from latteclip.core.holdout import FEWEST

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int_]
# Objectives that train nothing, the simplest first.
SIMPLICITY = {"zero_shot": 0, "zero_shot_calibrated": 1, "image_prototypes": 2}
ZERO_SHOT = ("zero_shot", "zero_shot_calibrated")
# Which of them is taken where nothing judges.
SAFEST = ("zero_shot_calibrated", "zero_shot", "image_prototypes")
ROUNDING = 1e-9  # one image more is a standard error exactly, and no lead


@dataclass(frozen=True)
class Candidate:
    """A classifier that may be chosen."""

    method: str
    seed: int
    objective: str
    marks: Sequence[str] = ()  # keys of `results.MARKS`

    @property
    def is_trained(self) -> bool:
        return self.objective not in SIMPLICITY

    def name(self, among: Sequence["Candidate"]) -> str:
        """Its method, and its seed where the method has several."""
        several = sum(one.method == self.method for one in among) > 1
        return f"{self.method} (seed {self.seed})" if several else self.method


class Lead(NamedTuple):
    """By how much one candidate agrees more with the votes than another."""

    mean: float
    error: float  # standard error of the mean, over the same images
    n: int  # images that judged both

    @property
    def is_clear(self) -> bool:
        """Whether it is more than a standard error."""
        return self.n >= FEWEST and self.mean > self.error + ROUNDING


@dataclass(frozen=True)
class Judge:
    """How far K candidates agree with the votes of n images."""

    agreements: (
        Floats  # [K, n] the vote's probability of the class that is predicted; NaN: unjudged
    )

    @classmethod
    def of(cls, votes: Floats, predictions: Sequence[Ints]) -> Self:
        """From votes [n, C], and what each candidate predicts [n], negative where unjudged."""
        rows = np.arange(len(votes))
        found = [np.where(own >= 0, votes[rows, own], np.nan) for own in predictions]
        return cls(np.stack(found).astype(np.float64))

    def judges(self, one: int) -> bool:
        """Whether enough images judge a candidate."""
        return int((~np.isnan(self.agreements[one])).sum()) >= FEWEST

    def means(self, one: int, other: int) -> tuple[float, float]:
        """How far two candidates agree with the votes of the images that judged both."""
        pair = self._pair(one, other)
        return float(pair[0].mean()), float(pair[1].mean())

    def lead(self, one: int, other: int) -> Lead:
        """Of one candidate over another."""
        pair = self._pair(one, other)
        differences, n = pair[0] - pair[1], pair.shape[1]
        if n < 2:
            return Lead(0.0, 0.0, n)
        error = float(differences.std(ddof=1)) / math.sqrt(n)
        return Lead(float(differences.mean()), error, n)

    def agreement(self, one: int, reference: int) -> float:
        """How far a candidate agrees with all votes that judged the reference.

        Where fewer images judged it, that is how far the reference agrees with all, and its lead
        over the reference with those few.
        """
        known = self.agreements[reference]
        return float(known[~np.isnan(known)].mean()) + self.lead(one, reference).mean

    def _pair(self, one: int, other: int) -> Floats:
        """Agreements [2, m] with the m images that judged both."""
        pair = self.agreements[[one, other]]
        both: Floats = pair[:, ~np.isnan(pair).any(axis=0)]
        return both


def choose(candidates: Sequence[Candidate], judge: Judge | str) -> int:
    """The candidate to take; labels have no part in it.

    It is that of `reference`, unless some that were trained agree more, and more than a standard
    error more than zero-shot, plain and calibrated: then the best of these.

    Args:
        candidates: K.
        judge: of them, or why there is none.
    """
    start = reference(candidates, judge)
    if isinstance(judge, str) or candidates[start].is_trained:
        return start
    hurdles = _zero_shots(candidates)
    challengers = [
        i
        for i in allowed(candidates)
        if candidates[i].is_trained
        and judge.judges(i)
        and all(judge.lead(i, one).is_clear for one in hurdles)
    ]
    return max([start, *challengers], key=lambda i: judge.lead(i, start).mean)


def reference(candidates: Sequence[Candidate], judge: Judge | str) -> int:
    """The simplest of those that train nothing and that the best of them does not clearly lead.

    Without a judge it is the safest; where all are trained, the best of them.
    """
    open_to = allowed(candidates)
    if isinstance(judge, str):
        return min(open_to, key=lambda i: (_place(candidates[i], SAFEST), i))
    judged = [i for i in open_to if judge.judges(i)] or open_to
    simple = [i for i in judged if not candidates[i].is_trained]
    best = _best(simple or judged, judge)
    if not simple:
        return best
    ties = [i for i in simple if not judge.lead(best, i).is_clear]
    return min(
        ties, key=lambda i: (_place(candidates[i], [*SIMPLICITY]), -judge.lead(i, best).mean)
    )


def _best(among: Sequence[int], judge: Judge) -> int:
    """That which agrees most, of candidates that the same images judged; of equals the first."""
    return max(among, key=lambda i: (judge.lead(i, among[0]).mean, -i))


def _place(candidate: Candidate, order: Sequence[str]) -> int:
    """Place of its objective; that of trained ones is the last."""
    return [*order, candidate.objective].index(candidate.objective)


def allowed(candidates: Sequence[Candidate]) -> list[int]:
    """Those that saw no label and did not collapse; if all did, all that saw no label.

    Raises:
        UserError: all saw labels.
    """
    unlabelled = [i for i, one in enumerate(candidates) if "supervised" not in one.marks]
    sound = [i for i in unlabelled if "collapsed" not in candidates[i].marks]
    if not unlabelled:
        raise UserError("No model can be chosen, for all of them saw labels; run another method.")
    return sound or unlabelled


def _zero_shots(candidates: Sequence[Candidate]) -> list[int]:
    """What a trained one has to lead clearly, whatever else there is."""
    return [i for i in allowed(candidates) if candidates[i].objective in ZERO_SHOT]


def reason(candidates: Sequence[Candidate], chosen: int, judge: Judge | str) -> str:
    """Why it was chosen, in one sentence."""
    names = [one.name(candidates) for one in candidates]
    if isinstance(judge, str):
        return f"{names[chosen]} is taken as the safest, for nothing judges: {judge}."
    judged = [i for i in allowed(candidates) if i != chosen and judge.lead(i, chosen).n >= FEWEST]
    unjudged = any(candidates[i].is_trained and not judge.judges(i) for i in allowed(candidates))
    end = "; nothing was left out that could judge what was trained" if unjudged else ""
    if not judged:
        return f"{names[chosen]} is the only one that can be chosen by votes{end}."
    if candidates[chosen].objective == "zero_shot":
        end = f": nothing here beat it{end}"
    rival = max(judged, key=lambda i: (judge.lead(i, chosen).mean, -i))
    led = judge.lead(rival, chosen).mean > 0
    zero_shot = [i for i in judged if candidates[i].objective == "zero_shot"]
    other = rival if led or not zero_shot else zero_shot[0]
    own, its = (f"{100 * mean:.1f} %" for mean in judge.means(chosen, other))
    begin = (
        f"{names[chosen]} agrees with {own} of {judge.lead(other, chosen).n} votes that it did not "
        f"learn from, {names[other]} with {its}"
    )
    if not led:
        return f"{begin}{end}."
    hurdles = _zero_shots(candidates) if candidates[rival].is_trained else [chosen]
    over = next((i for i in hurdles if not judge.lead(rival, i).is_clear), chosen)
    lead = judge.lead(rival, over)
    return (
        f"{begin}, whose lead over {names[over]}, {100 * lead.mean:.1f} points, is within a "
        f"standard error, {100 * lead.error:.1f}{end}."
    )


def rank_correlation(agreements: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Spearman's, of two figures of the same candidates; None where it is not defined."""
    pair = pd.DataFrame({"one": agreements, "other": accuracies})
    value = float(pair.corr(method="spearman").to_numpy()[0, 1])
    return None if math.isnan(value) else value
