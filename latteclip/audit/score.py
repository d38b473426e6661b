"""What the answers say of the candidates, in numbers, in a table and in one sentence.

Letters: N images, K candidates, n answers.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import combinations, takewhile
from pathlib import Path

import numpy as np

from latteclip.audit.answers import CLASS, NONE, UNSURE, Answer
from latteclip.audit.candidates import Audited, Floats, Ints
from latteclip.audit.draw import Plan
from latteclip.audit.estimate import Difference, difference, share
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.evaluate.audited import Accuracy, Audit, Comparison

log = logging.getLogger(__name__)
FEWEST = 10  # answers below which no interval is told


class TooFewAnswersError(UserError):
    """Fewer than FEWEST answers name a class or none."""


def score(audited: Audited, plan: Plan, answers: Mapping[str, Answer]) -> Audit:
    """Accuracies and differences of the candidates, by the answers that stand.

    Images of which nobody can tell the class are left out: within their stratum, the others stand
    for them. So are answers after the first image without one, for the sample is a beginning of
    the order that was drawn.

    Raises:
        TooFewAnswersError: there are too few answers.
    """
    answers = beginning(audited, plan, answers)
    told = {name: one for name, one in answers.items() if one.kind != UNSURE}
    if len(told) < FEWEST:
        raise TooFewAnswersError(
            f"There are {len(told)} answers that name a class or none; give at least {FEWEST}: "
            f"latteclip audit results/{audited.dataset}."
        )
    rows, hits = _hits(audited, told)
    sizes = np.bincount(plan.strata)
    accuracies = []
    for k, one in enumerate(audited.candidates):
        found = share(hits[:, k], plan.strata[rows], sizes)
        accuracies.append(Accuracy(one.method, one.seed, found.value, found.low, found.high))
    comparisons = [
        _comparison(audited, (other, one), _difference(audited, plan, rows, hits, (other, one)))
        for other, one in pairs(audited)
    ]
    scale = len(answers) / len(told)  # some of those to come say nothing either
    comparisons = [_with_more(one, scale, len(plan.strata) - len(answers)) for one in comparisons]
    return Audit(
        audited.dataset,
        audited.split,
        len(audited.image_ids),
        len(answers),
        len(answers) - len(told),
        sum(one.kind == NONE for one in told.values()),
        plan.digest,
        sentence(comparisons, accuracies),
        accuracies,
        comparisons,
    )


def write(path: Path, audit: Audit) -> None:
    """Write audit.json, whole or not at all."""
    write_json(path, asdict(audit))


def beginning(audited: Audited, plan: Plan, answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """The answers in the order of the plan, up to the first image that has none."""
    names = (audited.image_ids[row] for row in plan.order)
    found = {name: answers[name] for name in takewhile(answers.__contains__, names)}
    if len(found) < len(answers):
        log.warning(
            "%d answers are left out: they are about images after the first one without an answer.",
            len(answers) - len(found),
        )
    return found


def _hits(audited: Audited, told: Mapping[str, Answer]) -> tuple[Ints, Floats]:
    """The images with an answer [n], and whether each candidate is right there [n, K]."""
    place = {name: row for row, name in enumerate(audited.image_ids)}
    number = {name: label for label, name in enumerate(audited.classnames)}
    rows = np.array([place[name] for name in told])
    labels = np.array(
        [number[str(one.classname)] if one.kind == CLASS else -1 for one in told.values()]
    )
    return rows, (audited.predictions[rows] == labels[:, None]).astype(np.float64)


def pairs(audited: Audited) -> list[tuple[int, int]]:
    """The candidates that are compared with the baseline or the model to take: these two first."""
    every = combinations(range(len(audited.candidates)), 2)
    wanted = (pair for pair in every if set(pair) & set(audited.pair))
    return sorted(wanted, key=lambda pair: pair != audited.pair)


def _difference(
    audited: Audited, plan: Plan, rows: Ints, hits: Floats, pair: tuple[int, int]
) -> Difference:
    other, one = pair
    differ = (audited.predictions[:, one] != audited.predictions[:, other]).astype(np.int_)
    return difference(hits[:, one], hits[:, other], rows, plan.strata, differ)


def _comparison(audited: Audited, pair: tuple[int, int], found: Difference) -> Comparison:
    other, one = (audited.candidates[k].method for k in pair)
    interval = found.interval
    return Comparison(
        one, other, interval.value, interval.low, interval.high, found.decided, found.more
    )


def _with_more(one: Comparison, scale: float, left: int) -> Comparison:
    """With the images that are still needed, of which a share says nothing and `left` remain."""
    if not left and not one.decided:
        return replace(one, more=0)
    if not one.more:
        return one
    return replace(one, more=min(left, int(np.ceil(one.more * scale))))


def sentence(comparisons: list[Comparison], accuracies: list[Accuracy]) -> str:
    """The verdict on the first comparison, or on the only candidate."""
    if not comparisons:
        one = accuracies[0]
        return (
            f"{one.method} is right on {100 * one.value:.1f} % of the images "
            f"({100 * one.low:.1f} to {100 * one.high:.1f}); there is no other model to compare it "
            "with."
        )
    first = comparisons[0]
    if first.value == first.low == first.high == 0:
        return f"{first.method} and {first.other} say the same of every image."
    if not first.decided:
        return f"{_undecided(first)} (so far {_points(first.value, first.low, first.high)})."
    if first.value == 0:
        return f"{first.method} and {first.other} are right equally often."
    better, worse, values = first.method, first.other, (first.value, first.low, first.high)
    if first.value < 0:
        better, worse, values = worse, better, (-first.value, -first.high, -first.low)
    return f"{better} is better than {worse} by {_points(*values)}."


def _undecided(first: Comparison) -> str:
    yet = " yet" if first.more != 0 else ""
    names = f"Whether {first.method} is better than {first.other} cannot be told{yet}"
    return f"{names}: {wanted(first)}"


def wanted(one: Comparison) -> str:
    """What it would take to decide a comparison, in a few words."""
    if one.more is None:
        return "no difference is seen so far"
    if not one.more:
        return "no image is left to ask about"
    about = one.more if one.more < 10 else int(10 * np.ceil(one.more / 10))
    return f"about {about:,} more images"


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} points ({100 * low:.1f} to {100 * high:.1f})"


def table(audit: Audit) -> str:
    """The audit for a terminal."""
    lines = [
        f"{audit.answered} of {audit.images:,} {audit.split} images answered, drawn at random; "
        f"{audit.cannot_tell} cannot be told, {audit.none_of_these} are of no class. "
        "Percent, with 95 % intervals:",
        "",
    ]
    width = max(len(one.method) for one in audit.accuracies)
    for accuracy in audit.accuracies:
        lines.append(
            f"  {accuracy.method:{width}}  {100 * accuracy.value:5.1f}  "
            f"({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"
        )
    if audit.comparisons:
        lines += ["", "Differences in points:", ""]
    wide = max((len(f"{one.method} - {one.other}") for one in audit.comparisons), default=0)
    for one in audit.comparisons:
        names = f"{one.method} - {one.other}"
        lines.append(
            f"  {names:{wide}}  {100 * one.value:+5.1f}  ({100 * one.low:+.1f} to "
            f"{100 * one.high:+.1f}){'' if one.decided else f'  undecided, {wanted(one)}'}"
        )
    return "\n".join([*lines, "", audit.sentence])
