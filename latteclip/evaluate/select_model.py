"""The model of a dataset, chosen without labels among the candidates of a run.

Where two classifiers predict different classes of an image that neither learned from, the image
votes for the class that its caption (or a multimodal model) makes likelier. The classifier that is
right more often gets more votes, whatever mistakes captions make, unless it shares them. As in the
rule of one standard error (Hastie et al. 2009, section 7.10), a model replaces a simpler one only
where its lead is clear. A person's answers come before votes where they decide.

Letters: K candidates, n images, C classes.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.special import ndtri

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import (
    link_folder,
    read_object,
    read_record,
    replacing,
    write_record,
)
from latteclip.core.holdout import MIN_HELD_OUT
from latteclip.core.tables import VotesMetadata
from latteclip.core.terminal import counted
from latteclip.evaluate.results import (
    MISSING,
    Audit,
    Run,
    RunFiles,
    Selection,
    pool_seeds,
    predicted_classes,
)
from latteclip.labels.votes import Floats, Ints

log = logging.getLogger(__name__)
# Objectives without training: where two are equally good, the first is taken.
UNTRAINED = (
    "zero_shot",
    "zero_shot_adapted",
    "image_prototypes",
    "image_prototypes_encoders",
)
DEFAULT = "zero_shot_adapted"  # taken where nothing votes
# Taken there after answers or examples, which change it.
TAUGHT = "image_prototypes"
AVERAGE = "average_weights"  # its trainings predict the images that they left out
MIN_IMAGES = 20  # to compare classifiers without training
CLEAR = 0.25  # standard errors by which a model has to lead a simpler one
# Probability that answers seem to decide though all models are equally good.
ALPHA = 0.05
NORMAL = 1.96  # standard errors from the value to an end of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class Candidate(RunFiles):
    """A classifier that may be chosen, and its files."""

    objective: str
    is_default: bool = False  # whether it is taken where nothing votes
    flags: Sequence[str] = ()  # keys of `core.tables.FLAGS`

    @property
    def is_trained(self) -> bool:
        return self.objective not in UNTRAINED

    @property
    def complexity(self) -> int:
        """The place among UNTRAINED, or behind them."""
        return (*UNTRAINED, self.objective).index(self.objective)

    @property
    def caution(self) -> tuple[bool, int]:
        """The order in which candidates are taken where nothing votes: the smallest first."""
        return not self.is_default, self.complexity


class Lead(NamedTuple):
    """By how much a candidate is better than another on the held-out images of both."""

    images: int
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
    shares: Floats
    predictions: Ints  # [K, n] classes, MISSING where not held out

    def lead(self, one: Ints, other: Ints) -> Lead:
        """Compare two rows of predictions [n] on the images that are held out for both."""
        rows = np.flatnonzero((one != MISSING) & (other != MISSING))
        differences = self.shares[rows, one[rows]] - self.shares[rows, other[rows]]
        n = max(1, len(rows))
        error = math.sqrt((differences**2).sum()) / n
        return Lead(len(rows), float(differences.sum() / n), error)


@dataclass(frozen=True)
class Choice:
    """The candidate to take, and why."""

    candidate: Candidate
    reason: str
    # By how much candidates lead the best one without training.
    leads: dict[Run, Lead] = field(default_factory=dict)


def select_model(
    dataset: str,
    candidates: Sequence[Candidate],
    votes_path: str | None,
    audit_path: str | None,
    output: str,
    model_output: str,
) -> None:
    """Choose a model by votes and a person's answers, copy it, and write the reason."""
    is_taught = (
        votes_path and tables.read_metadata(votes_path, VotesMetadata).is_taught
    )
    default = TAUGHT if is_taught else DEFAULT
    flagged = [
        replace(
            each,
            is_default=each.objective == default,
            flags=read_object(each.metrics)["flags"],
        )
        for each in candidates
    ]
    able = eligible(flagged)
    votes = read_votes(able, votes_path)
    audit = read_record(Audit, audit_path) if audit_path else None
    choice = choose(able, votes, audit)
    chosen = choice.candidate
    with replacing(model_output) as folder:
        link_folder(chosen.model, folder)
    rows: list[dict[str, Any]] = []
    for each in flagged:
        lead = choice.leads.get(each.run)
        numbers = dict.fromkeys(Lead._fields)
        if lead and lead.images:  # else no held-out images compare it
            numbers = lead._asdict()
        known = {"method": each.method, "seed": each.seed, "flags": each.flags}
        rows.append(known | numbers)
    selection = Selection(*chosen.run, dataset, choice.reason, rows)
    write_record(output, selection)
    log.info("%s: %s is chosen. %s", dataset, chosen.method, choice.reason)


def eligible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that saw no label and did not collapse, or else those that did."""
    unlabelled = [each for each in candidates if "supervised" not in each.flags]
    if not unlabelled:
        raise UserError(
            "No model can be chosen, because all of them read labels; run another method."
        )
    return [
        each for each in unlabelled if "collapsed" not in each.flags
    ] or unlabelled


def read_votes(
    candidates: Sequence[Candidate], votes_path: str | None
) -> HeldOutVotes | str:
    """Return the votes and what each candidate predicts, or why there are none."""
    if votes_path is None:
        return "this run has neither captions of images nor class scores"
    table = tables.read(votes_path)
    described = tables.read_metadata(votes_path, VotesMetadata)
    if described.unfit:
        return described.unfit
    shares = tables.from_list_column(table["vote"])
    has_vote = shares.any(axis=1)
    ids = table["image_id"].filter(pa.array(has_vote))
    if len(ids) < MIN_IMAGES:
        return f"they are of {counted(len(ids), 'image')}, and {MIN_IMAGES} are needed"
    predictions = [
        predicted_classes(each.train_predictions, ids) for each in candidates
    ]
    return HeldOutVotes(shares[has_vote], np.stack(predictions))


def choose(
    candidates: Sequence[Candidate], votes: HeldOutVotes | str, audit: Audit | None
) -> Choice:
    """Choose among `eligible` candidates by votes, or why there are none, and by answers.

    Where answers decide that candidates are better than the one that votes choose, the best of
    these is taken.
    """
    if isinstance(votes, str):
        default = min(candidates, key=lambda each: each.caution)
        choice = Choice(
            default, f"{default.method} is the default without votes: {votes}."
        )
    else:
        choice = _by_votes(candidates, votes)
    return _by_answers(candidates, choice, audit) if audit else choice


def _by_votes(candidates: Sequence[Candidate], votes: HeldOutVotes) -> Choice:
    """Choose by votes.

    The reference is the simplest candidate without training that the best of these does not lead
    clearly. A trained one that at least MIN_HELD_OUT images compare replaces it where its lead is
    clear: first the method, all seeds together, then its seed.
    """
    pooled = pool_seeds([*votes.predictions], [each.method for each in candidates])
    compared = []
    for i, each in enumerate(candidates):
        needed = MIN_HELD_OUT if each.is_trained else MIN_IMAGES
        if (pooled[i] != MISSING).sum() >= needed:
            compared.append(i)
    reference = _reference(candidates, compared, pooled, votes)
    leads = [votes.lead(row, pooled[reference]) for row in pooled]
    method = candidates[reference].method

    def rank(i: int) -> tuple[float, bool, float]:
        """Order seeds of one method by their lead, and an average before its trainings."""
        alone = votes.lead(votes.predictions[i], votes.predictions[reference])
        return (
            leads[i].difference,
            candidates[i].objective == AVERAGE,
            alone.difference,
        )

    others = [i for i in compared if candidates[i].method != method]
    trained = [i for i in others if candidates[i].is_trained]
    rival = max(trained or others, key=rank, default=reference)
    is_better = candidates[rival].is_trained and leads[rival].is_clear
    reason = (
        f"By the votes of {leads[rival].images:,} held-out images, the accuracy of "
        f"{candidates[rival].method} differs from that of {method} by "
        f"{100 * leads[rival].difference:+.1f} points, with a standard error of "
        f"{100 * leads[rival].standard_error:.1f}."
    )
    if rival == reference:
        reason = f"{method} is the only model that can be compared."
    chosen = candidates[rival if is_better else reference]
    runs = [each.run for each in candidates]
    return Choice(chosen, reason, dict(zip(runs, leads, strict=True)))


def _reference(
    candidates: Sequence[Candidate],
    compared: Sequence[int],
    pooled: Sequence[Ints],
    votes: HeldOutVotes,
) -> int:
    """Return the simplest candidate without training that the best one does not lead clearly.

    Where all are trained, it is the default.
    """
    untrained = [i for i in compared if not candidates[i].is_trained]
    if not untrained:
        return min(range(len(candidates)), key=lambda i: candidates[i].caution)
    first = pooled[untrained[0]]
    best = max(untrained, key=lambda i: votes.lead(pooled[i], first).difference)
    ties = [
        i for i in untrained if not votes.lead(pooled[best], pooled[i]).is_clear
    ]
    return min(ties, key=lambda i: candidates[i].complexity)


def _by_answers(
    candidates: Sequence[Candidate], choice: Choice, audit: Audit
) -> Choice:
    """Return the candidate that answers decide to be better by most, or else the same choice.

    One of several comparisons is often clear by chance, so each has to be clearer (Bonferroni).
    """
    chosen = choice.candidate
    known = [
        (lead, each)
        for each in candidates
        if each != chosen and (lead := audit.lead(each.run, chosen.run))
    ]
    times = -ndtri(ALPHA / (2 * max(1, len(known)))) / NORMAL
    better = [
        (lead, each)
        for lead, each in known
        if lead.is_decided and lead.value > times * (lead.high - lead.low) / 2
    ]
    if not better:
        return choice
    lead, best = max(better, key=lambda pair: pair[0].value)
    reason = (
        f"A person's answers about {audit.answered:,} {audit.split} images decide: {best.method} "
        f"is better than {chosen.method} by {lead.words(' points')}."
    )
    return replace(choice, candidate=best, reason=reason)
