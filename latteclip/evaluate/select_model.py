"""The model of a dataset, chosen without labels among the candidates of a run.

The candidate of PREFERENCE that comes first is taken, unless votes decide that another is better:
where two classifiers predict different classes of an image that neither learned from, the image
votes for the class that its caption (or a multimodal model) makes likelier. The classifier that is
right more often gets more votes, whatever mistakes captions make, unless it shares them. A person's
answers come before votes where they decide.

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

from latteclip.config.registry import RECOMMENDED
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import (
    link_folder,
    read_object,
    read_record,
    replacing,
    write_record,
)
from latteclip.core.tables import VotesMetadata
from latteclip.evaluate.results import (
    MISSING,
    Audit,
    Run,
    RunFiles,
    Selection,
    predicted_classes,
)
from latteclip.labels.votes import Floats, Ints

log = logging.getLogger(__name__)
# Methods in the order in which they are preferred, by docs/benchmarks.md. All others come last.
PREFERENCE = (
    RECOMMENDED,
    "image_prototypes_encoders",
    "image_prototypes",
    "zero_shot_adapted",
    "zero_shot",
)
# Probability that votes, or answers, seem to decide though all models are equally good.
ALPHA = 0.05
NORMAL = 1.96  # standard errors from the value to an end of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class Candidate(RunFiles):
    """A classifier that may be chosen, and its files."""

    flags: Sequence[str] = ()  # keys of `core.tables.FLAGS`

    @property
    def rank(self) -> int:
        """The place of the method among PREFERENCE, or behind them."""
        return (*PREFERENCE, self.method).index(self.method)


class Lead(NamedTuple):
    """By how much a candidate is better than another on the held-out images of both."""

    images: int
    # Share of the images that the candidate is right for, less the other's.
    difference: float
    # Standard error of the difference, where both are right equally often.
    standard_error: float

    @property
    def in_standard_errors(self) -> float:
        return self.difference / max(self.standard_error, 1e-12)


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
    # By how much candidates lead the preferred one.
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
    flagged = [
        replace(each, flags=read_object(each.metrics)["flags"])
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
    if not len(ids):
        return "they are of no image"
    predictions = [
        predicted_classes(each.train_predictions, ids) for each in candidates
    ]
    return HeldOutVotes(shares[has_vote], np.stack(predictions))


def choose(
    candidates: Sequence[Candidate], votes: HeldOutVotes | str, audit: Audit | None
) -> Choice:
    """Choose among `eligible` candidates by votes, or why there are none, and by answers."""
    preferred = min(candidates, key=lambda each: each.rank)
    if isinstance(votes, str):
        reason = f"{preferred.method} is the default, for no votes compare models: {votes}."
        choice = Choice(preferred, reason)
    else:
        choice = _by_votes(candidates, preferred, votes)
    return _by_answers(candidates, choice, audit) if audit else choice


def _by_votes(
    candidates: Sequence[Candidate], preferred: Candidate, votes: HeldOutVotes
) -> Choice:
    """Return the candidate that votes decide to be better than the preferred one, or that one."""
    reference = votes.predictions[candidates.index(preferred)]
    leads = [votes.lead(row, reference) for row in votes.predictions]
    rival = max(
        (i for i, each in enumerate(candidates) if each != preferred),
        key=lambda i: leads[i].in_standard_errors,
        default=None,
    )
    if rival is None:
        return Choice(preferred, f"{preferred.method} is the only model.")
    lead = leads[rival]
    needed = _decisive(len(candidates) - 1)
    reason = (
        f"{preferred.method} is the default. By the votes of {lead.images:,} held-out images, the "
        f"accuracy of {candidates[rival].method} differs by {100 * lead.difference:+.1f} points, "
        f"with a standard error of {100 * lead.standard_error:.1f}: {needed:.1f} standard errors "
        "above would decide."
    )
    is_better = lead.in_standard_errors > needed
    runs = [each.run for each in candidates]
    return Choice(
        candidates[rival] if is_better else preferred,
        reason,
        dict(zip(runs, leads, strict=True)),
    )


def _by_answers(
    candidates: Sequence[Candidate], choice: Choice, audit: Audit
) -> Choice:
    """Return the candidate that answers decide to be better by most, or else the same choice."""
    chosen = choice.candidate
    known = [
        (lead, each)
        for each in candidates
        if each != chosen and (lead := audit.lead(each.run, chosen.run))
    ]
    times = _decisive(len(known)) / NORMAL
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


def _decisive(comparisons: int) -> float:
    """Return the standard errors by which the best of some comparisons decides (Bonferroni)."""
    return float(-ndtri(ALPHA / (2 * max(1, comparisons))))
