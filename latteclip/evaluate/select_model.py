"""The model of a dataset that people take: chosen without labels among those of the run.

Letters: K candidates, n images with votes, C classes.
"""

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import replacing, write_json
from latteclip.core.holdout import FEWEST
from latteclip.evaluate.results import FAILED, Audit, Run, read_audit, read_metrics
from latteclip.evaluate.train_predictions import MISSING, held_out_predictions

Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.floating]
# Objectives that train nothing, the simplest first.
SIMPLICITY = {"zero_shot": 0, "zero_shot_calibrated": 1, "image_prototypes": 2}
AVERAGE = "average_weights"  # objective: it is judged by what its trainings predict
# Which of them is taken where nothing judges.
SAFEST = ("zero_shot_calibrated", "zero_shot", "image_prototypes")
FEWEST_UNTRAINED = 20  # images that it takes to judge what trains nothing
CLEAR = 0.5  # standard errors by which a model has to lead a simpler one


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

    @property
    def run(self) -> Run:
        return self.method, self.seed

    @property
    def simplicity(self) -> int:
        """The smaller, the simpler; the same for all that is trained."""
        return SIMPLICITY.get(self.objective, len(SIMPLICITY))


class Comparison(NamedTuple):
    """How a candidate compares with another on the images that judge both."""

    images: int
    differ: int  # images for which the two predict different classes
    votes: int  # of these, votes for the candidate's class
    other_votes: int  # and for the other's class

    @property
    def lead(self) -> float:
        """The votes ahead, as a share of the images."""
        return (self.votes - self.other_votes) / max(1, self.images)

    @property
    def is_clear(self) -> bool:
        """Return whether the lead is more than one vote and more than CLEAR standard errors.

        Where both are right equally often, votes ahead have the square root of all votes as their
        standard error.
        """
        error = math.sqrt(self.votes + self.other_votes)
        return self.votes - self.other_votes > max(1.0, CLEAR * error)


@dataclass(frozen=True)
class Judge:
    """Votes, and what each candidate predicts where an image judges it."""

    shares: Floats  # [n, C] probability of each class by the image's caption alone
    predictions: Ints  # [K, n] classes, MISSING where an image does not judge the candidate
    voters: str = "captions"

    def images(self, one: int) -> int:
        """Return how many images judge a candidate."""
        return int((self.predictions[one] != MISSING).sum())

    def compare(self, one: int, other: int) -> Comparison:
        """Compare two candidates on the images that judge both."""
        pair = self.predictions[[one, other]]
        rows = np.flatnonzero((pair != MISSING).all(axis=0))
        own, its = (self.shares[rows, row[rows]] for row in pair)
        return Comparison(
            len(rows),
            int((pair[0] != pair[1])[rows].sum()),
            int((own > its).sum()),
            int((own < its).sum()),
        )

    def judges(self, one: int, candidate: Candidate) -> bool:
        """Return whether enough images judge a candidate."""
        return self.images(one) >= (FEWEST if candidate.is_trained else FEWEST_UNTRAINED)

    def pooled(self, candidates: Sequence[Candidate]) -> "Judge":
        """Return the same where each seed is judged by the images of all seeds of its method.

        Seeds leave out different images. Where an image judges several, the first one counts.
        """
        predictions = self.predictions.copy()
        for seeds in _by_method(candidates).values():
            pool = predictions[seeds[0]]
            for i in seeds[1:]:
                pool = np.where(pool == MISSING, self.predictions[i], pool)
            predictions[seeds] = pool
        return Judge(self.shares, predictions, self.voters)


@dataclass(frozen=True)
class Choice:
    """The candidate to take, and why."""

    index: int
    by: Literal["answers", "votes", "default"]
    reason: str  # one or two sentences
    reference: int  # what it was compared with: the candidate to take if nothing were trained


def choose(candidates: Sequence[Candidate], judge: Judge | str, audit: Audit | None) -> Choice:
    """Choose a candidate; labels have no part in it.

    A trained one takes the place of the best that trains nothing (`reference`) where at least
    FEWEST images judge it and its lead `is_clear`. Of trained ones the best method is taken, all
    its seeds judged together, and of its seeds the one with the largest lead. Where a person's
    answers decide that another candidate is better than the one that would be taken, the most
    accurate of those is.

    Args:
        candidates: K.
        judge: of them, or why there is none.
        audit: of the same runs, where there is one.

    Raises:
        UserError: all candidates saw labels.
    """
    start = reference(candidates, judge)
    found = start
    if isinstance(judge, Judge):
        found = _by_votes(candidates, start, judge)
    better = list(_better_by_answers(candidates, found, audit))
    if better and audit:
        found, before = max(better, key=lambda pair: pair[1])[0], found
        return Choice(found, "answers", _said_by_answers(candidates, found, before, audit), start)
    if isinstance(judge, str):
        why = f"Nothing judges the models: {judge}. {candidates[found].method} is the safest."
        return Choice(found, "default", why, start)
    return Choice(found, "votes", _said_by_votes(candidates, found, start, judge), start)


def reference(candidates: Sequence[Candidate], judge: Judge | str) -> int:
    """Return the simplest of those that train nothing which the best of them does not lead clearly.

    Without a judge it is the safest; where all are trained, the first of those that lead most.
    """
    open_to = allowed(candidates)
    simple = [i for i in open_to if not candidates[i].is_trained]
    if isinstance(judge, str):
        order = [*SAFEST, *(candidates[i].objective for i in open_to)]
        return min(simple or open_to, key=lambda i: order.index(candidates[i].objective))
    judged = [i for i in simple or open_to if judge.judges(i, candidates[i])]
    if not judged:
        return reference(candidates, "too few images judge them")
    pooled = judge.pooled(candidates)
    best = max(judged, key=lambda i: (pooled.compare(i, judged[0]).lead, -i))
    if not simple:
        return best
    ties = [i for i in judged if not judge.compare(best, i).is_clear]
    return min(ties, key=lambda i: (candidates[i].simplicity, i))


def _by_votes(candidates: Sequence[Candidate], start: int, judge: Judge) -> int:
    """Return the trained candidate that leads the reference most, or the reference.

    An average is taken rather than one of its trainings.
    """
    pooled = judge.pooled(candidates)
    leading = [
        i
        for i in allowed(candidates)
        if candidates[i].is_trained
        and not candidates[start].is_trained
        and pooled.compare(i, start).images >= FEWEST
        and pooled.compare(i, start).is_clear
    ]

    def order(i: int) -> tuple[float, bool, float, int]:
        is_average = candidates[i].objective == AVERAGE
        return pooled.compare(i, start).lead, is_average, judge.compare(i, start).lead, -i

    return max(leading or [start], key=order)


def _better_by_answers(
    candidates: Sequence[Candidate], found: int, audit: Audit | None
) -> Iterator[tuple[int, float]]:
    """Yield the candidates that answers decide to be better, with their accuracies."""
    if audit is None:
        return
    for i in allowed(candidates):
        comparison = audit.compare(candidates[i].run, candidates[found].run)
        accuracy = audit.accuracy(*candidates[i].run)
        if comparison and accuracy and comparison.decided and comparison.value > 0:
            yield i, accuracy.value


def allowed(candidates: Sequence[Candidate]) -> list[int]:
    """Return those that saw no label and whose training did not fail.

    If all failed, return all that saw no label.

    Raises:
        UserError: all saw labels.
    """
    unlabelled = [i for i, one in enumerate(candidates) if "supervised" not in one.marks]
    sound = [i for i in unlabelled if FAILED.isdisjoint(candidates[i].marks)]
    if not unlabelled:
        raise UserError("No model can be chosen, for all of them saw labels; run another method.")
    return sound or unlabelled


def _by_method(candidates: Sequence[Candidate]) -> Mapping[str, list[int]]:
    """Return the seeds of each method, as numbers of candidates, that are allowed."""
    found: dict[str, list[int]] = {}
    for i in allowed(candidates):
        found.setdefault(candidates[i].method, []).append(i)
    return found


def _said_by_answers(candidates: Sequence[Candidate], found: int, before: int, audit: Audit) -> str:
    own, other = candidates[found], candidates[before]
    comparison = audit.compare(own.run, other.run)
    assert comparison is not None
    points = [f"{100 * value:.1f}" for value in (comparison.value, comparison.low, comparison.high)]
    return (
        f"A person's answers about {audit.answered:,} {audit.split} images decide: {own.method} is "
        f"better than {other.method} by {points[0]} points ({points[1]} to {points[2]})."
    )


def _said_by_votes(candidates: Sequence[Candidate], found: int, start: int, judge: Judge) -> str:
    """Return the counts that decided, against the closest rival, in a few sentences."""
    pooled, methods = judge.pooled(candidates), _by_method(candidates)
    own, firsts = candidates[found], [seeds[0] for seeds in methods.values()]
    end = [f"The training of {name} {mark}." for name, mark in _failed(candidates).items()]
    if found != start:
        seeds = len(methods[own.method])
        end += [f"Of its {seeds} seeds, {own.seed} leads most."] if seeds > 1 else []
        return " ".join([_counted(candidates, found, start, pooled), *end])
    trained = [i for i in firsts if candidates[i].is_trained and i != found]
    rivals = [i for i in trained if pooled.compare(i, found).images >= FEWEST]
    if rivals and not own.is_trained:
        rival = max(rivals, key=lambda i: pooled.compare(i, found).lead)
        end = [f"So {own.method}, which trains nothing, is taken.", *end]
        return " ".join([_counted(candidates, rival, found, pooled), *end])
    if trained and not own.is_trained:
        images = max(pooled.images(i) for i in trained)
        few = f"Only {images} images judge" if images else "No image was left out to judge"
        end = [f"{few} what was trained, and it takes {FEWEST}.", *end]
    others = [i for i in firsts if i != found and pooled.compare(i, found).images]
    if not others:
        what = "taken" if len(firsts) > 1 else "the only model that can be chosen"
        return " ".join([f"{own.method} is {what}.", *end])
    other = min(others, key=lambda i: candidates[i].simplicity)
    return " ".join([_counted(candidates, found, other, pooled), *end])


def _failed(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Return the methods all of whose trainings failed, each with the mark of the first."""
    sound = {one.method for one in candidates if FAILED.isdisjoint(one.marks)}
    failed = [one for one in reversed(candidates) if one.method not in sound]
    return {one.method: next(mark for mark in one.marks if mark in FAILED) for one in failed}


def _counted(candidates: Sequence[Candidate], one: int, other: int, judge: Judge) -> str:
    """Return how many votes two candidates have, as a sentence."""
    found, own, its = judge.compare(one, other), candidates[one], candidates[other]
    apart = f" that {own.method} was not trained on" if own.is_trained else ""
    begin = f"{own.method} and {its.method} predict"
    if not found.differ:
        return f"{begin} the same classes for all {found.images:,} images{apart}."
    return (
        f"{begin} different classes for {found.differ:,} of {found.images:,} images{apart}: the "
        f"{judge.voters} favour {own.method} on {found.votes:,} of them and {its.method} on "
        f"{found.other_votes:,}."
    )


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateFiles:
    """A run whose model may be chosen."""

    method: str
    seed: int
    objective: str
    metrics: str
    train_predictions: str
    model: str  # folder


def select_model(
    dataset: str,
    candidates: Sequence[CandidateFiles],
    votes_path: str | None,
    audit_path: str | None,
    output: str,
    model_output: str,
) -> None:
    """Choose a model by votes and a person's answers; copy it, and say why.

    Accuracies are read to tell, beside the choice, what it cost; the choice is made before.

    Args:
        dataset: its key.
        candidates: the K candidates.
        votes_path: a VOTES table; None where nothing votes.
        audit_path: what `score_audit` wrote; None where no person answered.
        output: the JSON file that says what was chosen and why.
        model_output: folder that gets the model; files are hard links where that is possible.

    Raises:
        UserError: a file is missing or does not fit the others.
    """
    metrics = [read_metrics(run.metrics) for run in candidates]
    known = [
        Candidate(run.method, run.seed, run.objective, tuple(values["marks"]))
        for run, values in zip(candidates, metrics, strict=True)
    ]
    judge = read_judge(candidates, votes_path)
    audit = read_audit(audit_path) if audit_path else None
    choice = choose(known, judge, audit)
    accuracies = [values["acc1"] for values in metrics]
    chosen = candidates[choice.index]
    with replacing(model_output) as folder:
        # Hidden files are Snakemake's own.
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(chosen.model, folder, copy_function=_link, ignore=hidden)
    reference = known[choice.reference]
    write_json(
        output,
        {
            "dataset": dataset,
            "method": chosen.method,
            "seed": chosen.seed,
            "reason": choice.reason,
            "by": choice.by,
            "reference": {"method": reference.method, "seed": reference.seed},
            "candidates": _rows(known, accuracies, choice, judge, audit),
            "regret": _regret(accuracies, choice.index),
        },
    )
    log.info("%s: %s %s", dataset, chosen.method, choice.reason)


def read_judge(runs: Sequence[CandidateFiles], votes_path: str | None) -> Judge | str:
    """Return the votes and what each run predicts for their images, or why nothing judges."""
    if votes_path is None:
        return "this run has neither captions of images nor class scores"
    table, described = tables.read(votes_path, tables.VOTES)
    if described["told"]:
        return "the captions were asked for with zero-shot labels in the prompt"
    if not described["corroborated"]:
        return f"the {described['votes']} agree with the images no better than any others would"
    if len(table) < FEWEST_UNTRAINED:
        return f"it takes {FEWEST_UNTRAINED} images with votes, and there are {len(table)}"
    shares = pc.list_flatten(table["vote"]).to_numpy().reshape(len(table), -1)  # [n, C]
    predictions = [
        held_out_predictions(run.train_predictions, table["image_id"], described["classnames"])
        for run in runs
    ]
    return Judge(shares, np.stack(predictions), described["votes"])


def _rows(
    candidates: Sequence[Candidate],
    accuracies: Sequence[float | None],
    choice: Choice,
    judge: Judge | str,
    audit: Audit | None,
) -> list[dict[str, Any]]:
    """Return what is known of each candidate, in the order of the run."""
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(candidates):
        votes = answers = None
        if isinstance(judge, Judge) and judge.images(i):
            votes = {
                "images": judge.images(i),
                "with_reference": judge.pooled(candidates).compare(i, choice.reference)._asdict(),
            }
        if audit and (accuracy := audit.accuracy(*one.run)) and accuracy.run == one.run:
            answers = {key: asdict(accuracy)[key] for key in ("value", "low", "high")}
        rows.append(
            {
                "method": one.method,
                "seed": one.seed,
                "marks": list(one.marks),
                "votes": votes,
                "answers": answers,
                "acc1": accuracies[i],
            }
        )
    return rows


def _regret(accuracies: Sequence[float | None], chosen: int) -> float | None:
    """Return by how many points another candidate was better; None without test labels."""
    known = [value for value in accuracies if value is not None]
    own = accuracies[chosen]
    if own is None or len(known) < len(accuracies):
        return None
    return 100 * (max(known) - own)


def _link(source: str, destination: str) -> None:
    """The same file under another name, or a copy where the file system has no such links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
