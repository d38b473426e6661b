"""What a person's answers say of runs, in numbers, in a table and in a few sentences.

Letters: N images, K runs, n answers.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.audit.answers import CLASS, NONE, UNSURE, Answer, Asked
from latteclip.audit.candidates import Ints
from latteclip.audit.draw import Plan
from latteclip.audit.estimate import difference, share
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate.judged import JUDGED
from latteclip.evaluate.results import Accuracy, Audit, Comparison, Run, read_metrics

log = logging.getLogger(__name__)
FEWEST = 10  # answers below which no interval is told
BASELINE = "zero_shot"  # with which the verdict compares


class TooFewAnswersError(UserError):
    """Fewer than FEWEST answers name a class or none."""


@dataclass(frozen=True)
class RunFiles:
    """A run that is scored."""

    method: str
    seed: int
    metrics: str
    predictions: str  # of the images that are evaluated
    judged: str | None  # predictions of training images that it did not learn from
    has_model: bool  # that can be chosen


@dataclass(frozen=True)
class Scored:
    """A run that is scored."""

    method: str
    seed: int
    can_be_chosen: bool  # it reads no label, and there is a model of it to take
    predictions: Ints  # [N]


def asked(dataset: str, plan: Plan) -> Asked:
    """Return what answers to a plan may be about."""
    return Asked(plan.digest, dataset, frozenset(plan.image_ids), tuple(plan.classnames))


def scored(
    dataset: str, plan: Plan, answers: Mapping[str, Answer], runs: Sequence[RunFiles]
) -> Audit:
    """Score runs by answers. Runs that predict nothing of some image of the plan are left out.

    Raises:
        UserError: there are too few answers, no run can be scored, or a table is missing or broken.
    """
    found = [(run, _predictions(plan, run)) for run in runs]
    left_out = dict.fromkeys(run.method for run, predictions in found if predictions is None)
    if len(left_out) and all(predictions is None for _, predictions in found):
        raise UserError(
            f"The answers about {dataset} are about images or classes that no model has now; move "
            f"results/{dataset}/audit/{plan.split} away to begin a new audit."
        )
    if left_out:
        log.warning(
            "%s: of some images of the audit these predict nothing, and are left out.",
            ", ".join(left_out),
        )
    return score(
        dataset,
        plan,
        [
            Scored(run.method, run.seed, _can_be_chosen(run), predictions)
            for run, predictions in found
            if predictions is not None
        ],
        answers,
    )


def _predictions(plan: Plan, run: RunFiles) -> Ints | None:
    """Return the predictions [N] of the table that has all images of the plan, if either has."""
    for path, schema in ((run.predictions, tables.PREDICTIONS), (run.judged, JUDGED)):
        if path is None:
            continue
        table, described = tables.read(path, schema, ["image_id", "prediction"])
        places = pc.index_in(pa.array(plan.image_ids), table["image_id"])
        if described.get("classnames") == plan.classnames and not places.null_count:
            found: Ints = table["prediction"].take(places).to_numpy().astype(np.int_)
            return found
    return None


def _can_be_chosen(run: RunFiles) -> bool:
    return run.has_model and "supervised" not in read_metrics(run.metrics)["marks"]


def score(dataset: str, plan: Plan, runs: Sequence[Scored], answers: Mapping[str, Answer]) -> Audit:
    """Estimate the accuracies of runs and all their differences by the answers that stand.

    Images of which nobody can tell the class are left out: within their stratum, the others stand
    for them. So are answers after the first image without one, for the sample is a beginning of
    the order that was drawn.

    Raises:
        TooFewAnswersError: there are too few answers.
    """
    answers = beginning(plan, answers)
    told = {name: one for name, one in answers.items() if one.kind != UNSURE}
    if len(told) < FEWEST:
        raise TooFewAnswersError(
            f"There are {len(told)} answers that name a class or none; give at least {FEWEST}: "
            f"latteclip audit results/{dataset}."
        )
    rows, labels = _labels(plan, told)
    sizes = np.bincount(plan.strata)
    hits = [(one.predictions[rows] == labels).astype(np.float64) for one in runs]  # K times [n]
    accuracies = []
    for run, own in zip(runs, hits, strict=True):
        found = share(own, plan.strata[rows], sizes)
        ends = (found.value, found.low, found.high)
        accuracies.append(Accuracy(run.method, run.seed, *ends, run.can_be_chosen))
    scale = len(answers) / len(told)  # some of those to come say nothing either
    left = len(plan.strata) - len(answers)
    comparisons = []
    for j, i in combinations(range(len(runs)), 2):
        one, other = runs[i], runs[j]
        differ = (one.predictions != other.predictions).astype(np.int_)
        apart = difference(hits[i], hits[j], rows, plan.strata, differ)
        interval = apart.interval
        comparison = Comparison(
            *(one.method, one.seed, other.method, other.seed),
            *(interval.value, interval.low, interval.high),
            *(apart.decided, apart.more),
        )
        comparisons.append(_with_more(comparison, scale, left))
    audit = Audit(
        dataset,
        plan.split,
        len(plan.image_ids),
        len(answers),
        len(answers) - len(told),
        sum(one.kind == NONE for one in told.values()),
        plan.digest,
        "",
        accuracies,
        comparisons,
    )
    return replace(audit, sentence=verdict(audit))


def beginning(plan: Plan, answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return the answers in the order of the plan, up to the first image that has none."""
    names = (plan.image_ids[row] for row in plan.order)
    found = {name: answers[name] for name in takewhile(answers.__contains__, names)}
    if len(found) < len(answers):
        log.warning(
            "%d answers are left out: they are about images after the first one without an answer.",
            len(answers) - len(found),
        )
    return found


def _labels(plan: Plan, told: Mapping[str, Answer]) -> tuple[Ints, Ints]:
    """Return the images with an answer [n], and their classes [n]; -1: of none."""
    place = {name: row for row, name in enumerate(plan.image_ids)}
    number = {name: label for label, name in enumerate(plan.classnames)}
    rows = np.array([place[name] for name in told])
    labels = [number[str(one.classname)] if one.kind == CLASS else -1 for one in told.values()]
    return rows, np.array(labels)


def _with_more(one: Comparison, scale: float, left: int) -> Comparison:
    """With the images that are still needed, of which a share says nothing and `left` remain."""
    if not left and not one.decided:
        return replace(one, more=0)
    if not one.more:
        return one
    return replace(one, more=min(left, int(np.ceil(one.more * scale))))


def verdict(audit: Audit) -> str:
    """Say which run is best, and of what it is decided that it is better."""
    name = names(audit)
    best = audit.best or audit.accuracies[0]
    value = (
        f"{100 * best.value:.1f} % of the images ({100 * best.low:.1f} to {100 * best.high:.1f})"
    )
    found = comparisons_of_best(audit)
    if not found:
        return f"{name[best.run]} is right on {value}; there is no other model to compare it with."
    lead = "The best model is" if all(one.decided for one in found) else "So far the best model is"
    said = [_compared(one, name[one.runs[1]]) for one in found]
    return " ".join([f"{lead} {name[best.run]}, right on {value}.", *said])


def comparisons_of_best(audit: Audit) -> list[Comparison]:
    """Compare the best run with the best run of another method, and with the baseline."""
    if (best := audit.best) is None:
        return []
    others = [one for one in audit.accuracies if one.can_be_chosen and one.method != best.method]
    next_best = sorted(others, key=lambda one: -one.value)[:1]
    wanted = next_best + [one for one in others if one.method == BASELINE]
    found = [audit.compare(best.run, run) for run in dict.fromkeys(one.run for one in wanted)]
    return [one for one in found if one]


def names(audit: Audit) -> dict[Run, str]:
    """Return what each run is called: its method, and the seed where the method has several."""
    times = Counter(one.method for one in audit.accuracies)
    return {
        one.run: one.method if times[one.method] == 1 else f"{one.method} (seed {one.seed})"
        for one in audit.accuracies
    }


def _compared(one: Comparison, other: str) -> str:
    """Say whether the best run is better than another."""
    if one.value == one.low == one.high == 0:
        return f"{other} says the same of every image."
    if not one.decided:
        yet = "" if one.more == 0 else " yet"
        return (
            f"Whether it is better than {other} cannot be told{yet}: {wanted(one)} "
            f"(so far {_points(one)})."
        )
    if one.value == 0:
        return f"It is right as often as {other}."
    return f"It is better than {other} by {_points(one)}."


def wanted(one: Comparison) -> str:
    """What it would take to decide a comparison, in a few words."""
    if one.more is None:
        return "no difference is seen so far"
    if not one.more:
        return "no image is left to ask about"
    about = one.more if one.more < 10 else int(10 * np.ceil(one.more / 10))
    return f"about {about:,} more images"


def _points(one: Comparison) -> str:
    return f"{100 * one.value:.1f} points ({100 * one.low:.1f} to {100 * one.high:.1f})"


def as_texts(audit: Audit) -> tuple[list[list[str]], list[list[str]]]:
    """Return accuracies, the best first, and how much better the best is than each other run.

    Each row has a name, a figure and its interval, as texts; those of the second table say also
    what it would take to decide.
    """
    name = names(audit)
    order = sorted(audit.accuracies, key=lambda one: -one.value)
    accuracies = [
        [name[one.run], f"{100 * one.value:.1f}", f"{100 * one.low:.1f} to {100 * one.high:.1f}"]
        for one in order
    ]
    best = audit.best or order[0]
    found = [one for other in order if (one := audit.compare(best.run, other.run))]
    return accuracies, [
        [
            f"{name[best.run]} - {name[one.runs[1]]}",
            f"{100 * one.value:+.1f}",
            f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
            "" if one.decided else f"undecided, {wanted(one)}",
        ]
        for one in found
    ]


def table(audit: Audit) -> str:
    """Write the audit for a terminal."""
    lines = [
        f"{audit.answered} of {audit.images:,} {audit.split} images answered, drawn at random; "
        f"{audit.cannot_tell} cannot be told, {audit.none_of_these} are of no class. "
        "Percent, with 95 % intervals:",
        "",
    ]
    accuracies, differences = as_texts(audit)
    lines += _columns(accuracies)
    if differences:
        lines += ["", "Differences in points:", "", *_columns(differences)]
    return "\n".join([*lines, "", audit.sentence])


def _columns(found: list[list[str]]) -> list[str]:
    wide = max(len(row[0]) for row in found)
    return [
        f"  {row[0]:{wide}}  {row[1]:>5}  ({row[2]})  {''.join(row[3:])}".rstrip() for row in found
    ]
