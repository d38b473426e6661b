"""Which of several classifiers to take, without labels: votes that they did not learn from judge.

A caption (or a multimodal model that is asked) votes for the class of its image. Classifiers that
are right more often agree more with such votes, whatever mistakes the votes make by themselves, as
long as the classifiers do not share them. Those that train nothing are judged by many images, each
without its own part in the classifier; those that were trained by the images that they left out.

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

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int_]
# Objectives that train nothing, the simplest first.
SIMPLICITY = {"zero_shot": 0, "zero_shot_calibrated": 1, "image_prototypes": 2}
ZERO_SHOT = ("zero_shot", "zero_shot_calibrated")
# Which of them is taken where nothing judges.
SAFEST = ("zero_shot_calibrated", "zero_shot", "image_prototypes")
FEWEST = 20  # fewer images judge nothing
ROUNDING = 1e-9  # one image more is a standard error exactly, and no lead


@dataclass(frozen=True)
class Candidate:
    """A classifier that may be chosen."""

    method: str
    seed: int
    objective: str
    marks: Sequence[str] = ()  # keys of `results.MARKS`
    from_votes: bool = False  # its labels are made with the help of captions or class scores

    @property
    def is_trained(self) -> bool:
        return self.objective not in SIMPLICITY


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

    def pooled(self, candidates: Sequence[Candidate]) -> "Judge":
        """Return the same where each seed has the agreements of all `allowed` seeds of its method.

        Seeds are judged by different images; where an image judges several, their mean counts.
        """
        agreements = self.agreements.copy()
        open_to = allowed(candidates)
        for i in open_to:
            seeds = [j for j in open_to if candidates[j].method == candidates[i].method]
            judged = ~np.isnan(self.agreements[seeds])
            total = np.where(judged, self.agreements[seeds], 0.0).sum(axis=0)
            agreements[i] = np.where(judged.any(axis=0), total, np.nan) / np.maximum(
                judged.sum(axis=0), 1
            )
        return Judge(agreements)

    def _pair(self, one: int, other: int) -> Floats:
        """Agreements [2, m] with the m images that judged both."""
        pair = self.agreements[[one, other]]
        both: Floats = pair[:, ~np.isnan(pair).any(axis=0)]
        return both


def choose(candidates: Sequence[Candidate], judge: Judge | str) -> int:
    """The candidate to take; labels have no part in it.

    It is that of `reference`, unless some that were trained are `_believed`: then the best of
    these. Trained ones are judged by the mean over the seeds of their method, and of the chosen
    method that seed is taken which agrees most.

    Args:
        candidates: K.
        judge: of them, or why there is none.
    """
    start = reference(candidates, judge)
    if isinstance(judge, str) or candidates[start].is_trained:
        return start
    pooled = judge.pooled(candidates)
    believed = [i for i in allowed(candidates) if _believed(candidates, i, start, pooled)]
    return max(
        believed or [start],
        key=lambda i: (pooled.lead(i, start).mean, judge.lead(i, start).mean, -i),
    )


def _believed(candidates: Sequence[Candidate], one: int, start: int, judge: Judge) -> bool:
    """Whether a trained one is taken in place of the best that trains nothing.

    It has to lead that, and zero-shot, plain and calibrated, by more than a standard error. Where
    both learned from votes, the votes already proved better than zero-shot: there it is enough
    that training did not clearly lose what was there before it, for few images are held out.
    """
    zero_shots = _zero_shots(candidates)
    if not candidates[one].is_trained or not judge.judges(one):
        return False
    if candidates[one].from_votes and candidates[start].from_votes:
        leads_zero_shot = all(judge.lead(one, i).mean > 0 for i in zero_shots)
        return leads_zero_shot and not judge.lead(start, one).is_clear
    return all(judge.lead(one, i).is_clear for i in [start, *zero_shots])


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
    own_name = candidates[chosen].method
    if isinstance(judge, str):
        return f"{own_name} is taken as the safest, for nothing judges: {judge}."
    pooled = judge.pooled(candidates)
    open_to = allowed(candidates)
    one_each = {candidates[i].method: i for i in [*reversed(open_to), chosen]}
    rivals = [i for i in sorted(one_each.values()) if i != chosen]
    judged = [i for i in rivals if pooled.lead(i, chosen).n >= FEWEST]
    end = _reservations(candidates, chosen, judge)
    if not judged:
        return f"{own_name} is the only one that can be chosen by votes{end}."
    if candidates[chosen].objective == "zero_shot":
        end = f": nothing here beat it{end}"
    rival = max(judged, key=lambda i: (pooled.lead(i, chosen).mean, -i))
    led = pooled.lead(rival, chosen).mean > 0
    zero_shot = [i for i in judged if candidates[i].objective == "zero_shot"]
    other = rival if led or not zero_shot else zero_shot[0]
    own, its = (f"{100 * mean:.1f} %" for mean in pooled.means(chosen, other))
    begin = (
        f"{own_name} agrees with {own} of {pooled.lead(other, chosen).n} votes that it did not "
        f"learn from, {candidates[other].method} with {its}"
    )
    if not led:
        return f"{begin}{end}."
    hurdles = [chosen, reference(candidates, judge), *_zero_shots(candidates)]
    over = next((i for i in hurdles if not pooled.lead(rival, i).is_clear), chosen)
    lead = pooled.lead(rival, over)
    return (
        f"{begin}, whose lead over {candidates[over].method}, {100 * lead.mean:.1f} points, is "
        f"within a standard error, {100 * lead.error:.1f}{end}."
    )


def _reservations(candidates: Sequence[Candidate], chosen: int, judge: Judge) -> str:
    """What else has to be said of a choice by votes."""
    open_to = allowed(candidates)
    seeds = [i for i in open_to if candidates[i].method == candidates[chosen].method]
    end = ""
    if len(seeds) > 1:
        end += f"; of its {len(seeds)} seeds {candidates[chosen].seed} agrees most"
    if any(candidates[i].is_trained and not judge.judges(i) for i in open_to):
        end += "; nothing was left out that could judge what was trained"
    return end


def rank_correlation(agreements: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Spearman's, of two figures of the same candidates; None where it is not defined."""
    pair = pd.DataFrame({"one": agreements, "other": accuracies})
    value = float(pair.corr(method="spearman").to_numpy()[0, 1])
    return None if math.isnan(value) else value
