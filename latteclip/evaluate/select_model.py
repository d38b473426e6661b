"""The model of a dataset, chosen without labels among the candidates of a run.

Where two classifiers predict different classes of an image that neither learned from, the image
votes for the class that its caption (or a multimodal model) makes likelier. The classifier that is
right more often gets more votes, whatever mistakes captions make, unless it shares them. As in the
rule of one standard error (Hastie et al. 2009, section 7.10), a model replaces a simpler one only
where its lead is clear. A person's answers come before votes where they decide.
"""

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import link_or_copy, replacing, write_record
from latteclip.core.holdout import MIN_HELD_OUT
from latteclip.core.tables import FAILED, VotesMetadata
from latteclip.core.terminal import counted
from latteclip.evaluate.predictions import MISSING, held_out_predictions, pool_seeds
from latteclip.evaluate.results import Audit, Run, Selection, read_audit, read_metrics

log = logging.getLogger(__name__)
MIN_IMAGES = 20  # to compare classifiers without training
CLEAR = 0.25  # standard errors by which a model has to lead a simpler one
ALPHA = 0.05  # probability that answers seem to decide though all models are equally good
NORMAL = 1.96  # standard errors from the value to an end of a 95 % interval


@dataclass(frozen=True)
class Candidate:
    """A classifier that may be chosen, and its files."""

    method: str
    seed: int
    # Among those without training, from 0; None: it was trained.
    complexity: int | None = None
    is_default: bool = False  # whether it is taken where nothing votes
    is_average: bool = False  # whether its trainings predict the images that they left out
    flags: Sequence[str] = ()  # keys of `core.tables.FLAGS`
    metrics: str = ""
    train_predictions: str = ""
    model: str = ""  # folder

    @property
    def run(self) -> Run:
        return self.method, self.seed

    @property
    def caution(self) -> tuple[bool, int]:
        """The order in which candidates are taken where nothing votes: the smallest first."""
        return not self.is_default, self.complexity or 0

    @property
    def is_trained(self) -> bool:
        return self.complexity is None


class CandidateComparison(NamedTuple):
    """A candidate compared with another on the held-out images of both."""

    images: int
    differ: int  # images for which the two predict different classes
    # Sum of the probabilities of the candidate's class, where the two differ.
    support: float
    other_support: float  # the same sum for the other's class
    # Share of the images that the candidate is right for, less the other's.
    difference: float
    # Standard error of the difference, where both are right equally often.
    standard_error: float

    @property
    def is_clear(self) -> bool:
        return self.difference > CLEAR * self.standard_error


@dataclass(frozen=True)
class HeldOutVotes:
    """Votes of n images for C classes, and what the K candidates predict for them."""

    # [n, C] probability of each class by the caption alone
    shares: npt.NDArray[np.floating]
    predictions: npt.NDArray[np.int_]  # [K, n] classes, MISSING where not held out
    source: str = "captions"

    def images(self, i: int) -> int:
        """Return how many images are held out for a candidate."""
        return int((self.predictions[i] != MISSING).sum())

    def compare(self, i: int, j: int) -> CandidateComparison:
        """Compare two candidates on the images that are held out for both."""
        pair = self.predictions[[i, j]]
        is_held_out = (pair != MISSING).all(axis=0)
        rows = np.flatnonzero(is_held_out)
        first, second = pair[:, rows]
        first_shares = self.shares[rows, first]
        second_shares = self.shares[rows, second]
        differ = first != second
        support = float(first_shares[differ].sum())
        other_support = float(second_shares[differ].sum())
        squares = (first_shares - second_shares) ** 2
        n = max(1, len(rows))
        return CandidateComparison(
            images=len(rows),
            differ=int(differ.sum()),
            support=support,
            other_support=other_support,
            difference=(support - other_support) / n,
            standard_error=math.sqrt(squares.sum()) / n,
        )

    def pooled(self, candidates: Sequence[Candidate]) -> "HeldOutVotes":
        """Return the same where seeds that may be chosen are filled up by those of their method."""
        able = eligible(candidates)
        predictions = self.predictions.copy()
        methods = [candidates[i].method for i in able]
        predictions[able] = pool_seeds([*predictions[able]], methods)
        return replace(self, predictions=predictions)


@dataclass(frozen=True)
class Choice:
    """The candidate to take, and why."""

    index: int
    reason: str
    reference: int  # the best without training, with which the others are compared


def select_model(
    dataset: str,
    candidates: Sequence[Candidate],
    votes_path: str | None,
    audit_path: str | None,
    output: str,
    model_output: str,
) -> None:
    """Choose a model by votes and a person's answers, copy it, and write the reason."""
    candidates = [
        replace(candidate, flags=read_metrics(candidate.metrics)["flags"])
        for candidate in candidates
    ]
    votes = read_votes(candidates, votes_path)
    choice = choose(candidates, votes, read_audit(audit_path) if audit_path else None)
    chosen = candidates[choice.index]
    with replacing(model_output) as folder:
        hidden = shutil.ignore_patterns(".*")  # files of Snakemake
        shutil.copytree(chosen.model, folder, copy_function=link_or_copy, ignore=hidden)
    rows = _rows(candidates, choice, votes)
    selection = Selection(dataset, chosen.method, chosen.seed, choice.reason, rows)
    write_record(output, selection)
    log.info("%s: %s is chosen. %s", dataset, chosen.method, choice.reason)


def read_votes(runs: Sequence[Candidate], votes_path: str | None) -> HeldOutVotes | str:
    """Return the votes and what each run predicts, or why there are none."""
    if votes_path is None:
        return "this run has neither captions of images nor class scores"
    table = tables.read(votes_path, tables.VOTES)
    described = tables.read_metadata(votes_path, VotesMetadata)
    if described.unfit:
        return described.unfit
    if len(table) < MIN_IMAGES:
        n = counted(len(table), "image")
        return f"votes exist for {n}, and {MIN_IMAGES} are needed"
    shares = tables.from_list_column(table["vote"])  # [n, C]
    ids = table["image_id"]
    names = described.classnames
    predictions = [held_out_predictions(run.train_predictions, ids, names) for run in runs]
    return HeldOutVotes(shares, np.stack(predictions), described.votes)


def choose(
    candidates: Sequence[Candidate], votes: HeldOutVotes | str, audit: Audit | None
) -> Choice:
    """Choose a candidate by votes, or why there are none, and by a person's answers.

    The best trained one replaces the best without training (the reference) where its lead over at
    least MIN_HELD_OUT images `is_clear`: first the method, all seeds together, then its seed. Where
    answers decide that others are better, the most accurate of them is taken.
    """
    reference = best_training_free(candidates, votes)
    if isinstance(votes, str):
        reason = f"{candidates[reference].method} is the default without votes: {votes}."
        choice = Choice(reference, reason, reference)
    else:
        best = _best_trained(candidates, reference, votes)
        reason = _by_votes(candidates, best, reference, votes)
        choice = Choice(best, reason, reference)
    if audit is None:
        return choice
    return _by_answers(candidates, choice, audit) or choice


def eligible(candidates: Sequence[Candidate]) -> list[int]:
    """Return the candidates that saw no label and did not fail, or else those that failed."""
    unlabelled = [
        i for i, candidate in enumerate(candidates) if "supervised" not in candidate.flags
    ]
    if not unlabelled:
        raise UserError(
            "No model can be chosen, because all of them read labels; run another method."
        )
    sound = [i for i in unlabelled if FAILED.isdisjoint(candidates[i].flags)]
    return sound or unlabelled


def best_training_free(candidates: Sequence[Candidate], votes: HeldOutVotes | str) -> int:
    """Return the simplest candidate without training that the best one does not lead clearly.

    Without enough votes it is the safest. Where all are trained, it is the one that leads most.
    """
    able = eligible(candidates)
    simple = [i for i in able if not candidates[i].is_trained]
    allowed = simple or able
    needed = MIN_IMAGES if simple else MIN_HELD_OUT
    safest = min(allowed, key=lambda i: candidates[i].caution)
    if isinstance(votes, str):
        return safest
    compared = [i for i in allowed if votes.images(i) >= needed]
    if not compared:
        return safest
    pooled = votes.pooled(candidates)
    leads = {i: pooled.compare(i, compared[0]).difference for i in compared}
    best = max(compared, key=lambda i: (leads[i], -i))
    if not simple:
        return best
    ties = [i for i in compared if not votes.compare(best, i).is_clear]
    return min(ties, key=lambda i: (candidates[i].complexity or 0, i))


def _best_trained(candidates: Sequence[Candidate], start: int, votes: HeldOutVotes) -> int:
    """Return the trained candidate that leads the reference most and clearly, or the reference.

    An average is taken rather than one of its trainings.
    """
    if candidates[start].is_trained:
        return start
    pooled = votes.pooled(candidates)
    trained = [i for i in eligible(candidates) if candidates[i].is_trained]
    ranks = {}
    for i in trained:
        lead = pooled.compare(i, start)
        if lead.images >= MIN_HELD_OUT and lead.is_clear:
            alone = votes.compare(i, start).difference
            ranks[i] = (lead.difference, candidates[i].is_average, alone, -i)
    return max(ranks, key=ranks.__getitem__, default=start)


def _by_answers(
    candidates: Sequence[Candidate], choice: Choice, audit: Audit
) -> Choice | None:
    """Return the most accurate candidate that answers decide to be better, if any.

    One of several comparisons is often clear by chance, so each has to be clearer (Bonferroni).
    """
    runs = [candidate.run for candidate in candidates]
    pairs = {
        i: pair
        for i in eligible(candidates)
        if i != choice.index and (pair := audit.compare(runs[i], runs[choice.index]))
    }
    if not pairs:
        return None
    times = -ndtri(ALPHA / (2 * len(pairs))) / NORMAL
    better = [
        i
        for i, pair in pairs.items()
        if pair.decided and pair.value > times * (pair.high - pair.low) / 2
    ]
    values = {run.run: run.value for run in audit.accuracies}
    best = max(better, key=lambda i: values[runs[i]], default=None)
    if best is None:
        return None
    pair = pairs[best]
    interval = f"{100 * pair.low:.1f} to {100 * pair.high:.1f}"
    reason = (
        f"A person's answers about {counted(audit.answered, f'{audit.split} image')} decide: "
        f"{pair.method} is better than {pair.other} by {100 * pair.value:.1f} points ({interval})."
    )
    return Choice(best, reason, choice.reference)


def _by_votes(
    candidates: Sequence[Candidate], chosen: int, start: int, votes: HeldOutVotes
) -> str:
    """Return the reason of a choice by votes: the numbers against the closest rival."""
    pooled = votes.pooled(candidates)
    winner = candidates[chosen].method
    note = ""
    against = {i: pooled.compare(chosen, i) for i in eligible(candidates) if i != chosen}
    others = [i for i, pair in against.items() if pair.images]
    if not others:
        return f"{winner} is the only model that can be compared."
    trained = [
        i for i in against if candidates[i].is_trained and candidates[i].method != winner
    ]
    enough = [i for i in trained if against[i].images >= MIN_HELD_OUT]
    closest = min(enough or others, key=lambda i: against[i].difference)
    rival = closest if chosen == start else start
    compared = against[rival]
    other = candidates[rival].method
    if trained and not enough and not candidates[chosen].is_trained:
        note = f" No trained model has {MIN_HELD_OUT} held-out images, which a comparison needs."
    elif compared.difference < 0:
        note = " That lead is not clear, so the simpler model is taken."
    images = counted(compared.images, "held-out image")
    return (
        f"{winner} and {other} classify {compared.differ:,} of {images} differently: by the "
        f"{votes.source}, {winner} should be right for {compared.support:,.1f} of them and {other} "
        f"for {compared.other_support:,.1f}.{note}"
    )


def _rows(
    candidates: Sequence[Candidate], choice: Choice, votes: HeldOutVotes | str
) -> list[dict[str, Any]]:
    """Return a row of each candidate. All seeds of a method are compared together."""
    pooled = None if isinstance(votes, str) else votes.pooled(candidates)
    rows = []
    for i, candidate in enumerate(candidates):
        row: dict[str, Any] = {"method": candidate.method, "seed": candidate.seed}
        row |= {"flags": candidate.flags}
        row |= dict.fromkeys(("images", "difference", "standard_error"))
        if pooled and pooled.images(i):
            pair = pooled.compare(i, choice.reference)
            row |= {key: value for key, value in pair._asdict().items() if key in row}
        rows.append(row)
    return rows
