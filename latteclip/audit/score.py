"""Accuracies and differences of runs by a person's answers, with 95 % intervals, and what to do.

The variance is that of stratified sampling without replacement (Cochran, Sampling Techniques, 1977,
5.6), with Satterthwaite's degrees of freedom (5.4). A small stratum whose few answers are all alike
would count as known. So ADDED answers of the largest possible variance are added to each stratum.
Letters: N images, K runs, H strata, n answers.
"""

import logging
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from latteclip.audit.sampling import (
    BASELINE,
    RATES,
    TEST,
    Floats,
    Ints,
    RunFiles,
    SamplingPlan,
    predictions_of,
    read_plan,
)
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.core.run_options import run_command
from latteclip.evaluate.predictions import MISSING
from latteclip.evaluate.results import Accuracy, Audit, Comparison, Run, read_metrics
from latteclip.labels.answers import NONE, UNSURE, Answer, Answers
from latteclip.labels.guarantees import MIN_ANSWERS, Interval

log = logging.getLogger(__name__)
LEVEL = 0.95
MANY = 10**6  # images for each of a sample, of which new ones will be
ADDED = 2  # answers, to the variance of each stratum
# Share of a plan's images that a run may leave unpredicted, else it is left out. It may have
# learned from a few of them, whose files were renamed after the drawing.
MAX_MISSING = 0.1


class TooFewAnswersError(UserError):
    """Fewer than MIN_ANSWERS answers name a class or none."""


@dataclass(frozen=True)
class RunPredictions:
    """What a run predicts of the images of a plan."""

    run: Run
    can_be_chosen: bool  # it reads no label, and it has a model
    predictions: Ints  # [N]


def read_predictions(
    dataset: str, plan: SamplingPlan, runs: Sequence[RunFiles]
) -> list[RunPredictions]:
    """Return what the runs predict that predict most images of a plan, or raise UserError."""
    predicted = []
    missing = []
    image_ids = plan.images["image_id"]
    of_runs = predictions_of(runs, image_ids, plan.classnames, plan.split)
    for files, predictions in zip(runs, of_runs, strict=True):
        if (predictions == MISSING).sum() > MAX_MISSING * len(predictions):
            missing.append(files.method)
        else:
            reads_labels = "supervised" in read_metrics(files.metrics)["flags"]
            predicted.append(RunPredictions(files.run, not reads_labels, predictions))
    if not predicted:
        raise UserError(
            f"No model predicts the images of the answers about {dataset}; run the "
            f"workflow, or move results/{dataset}/audit/{plan.split} away to begin a new audit."
        )
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        log.warning("%s: left out, without predictions of many images of the audit.", names)
    return predicted


def score(
    dataset: str, plan: SamplingPlan, runs: Sequence[RunPredictions], answers: Answers
) -> Audit:
    """Estimate the accuracies of runs and all their differences from answers.

    Answers "cannot tell" are left out, and the other images of their stratum represent them. So are
    answers after the first image without one, for the sample is a prefix of the order, and images
    that a run does not predict. Raises TooFewAnswersError.
    """
    is_predicted = np.all([run.predictions != MISSING for run in runs], axis=0)
    asked = answered_prefix(plan, answers)
    asked = {row: answer for row, answer in asked.items() if is_predicted[row]}
    known = {row: answer for row, answer in asked.items() if answer.kind != UNSURE}
    if len(known) < MIN_ANSWERS:
        raise TooFewAnswersError(
            f"There are {len(known)} answers that name a class or none; give at least "
            f"{MIN_ANSWERS}: latteclip audit results/{dataset}."
        )
    rows = np.array([*known])
    label_of: dict[str | None, int] = {}
    for label, name in enumerate(plan.classnames):
        label_of[name] = label
    labels = np.array([label_of.get(answer.classname, -1) for answer in known.values()])
    strata = plan.strata[rows]
    # K times [n].
    hits = [(run.predictions[rows] == labels).astype(np.float64) for run in runs]
    # Training images stand for new ones: however many are asked about, others remain.
    scale = 1 if plan.split == TEST else MANY

    def sizes(is_counted: npt.NDArray[np.bool_]) -> Ints:
        """Return the sizes [H] of the strata of a population."""
        return scale * np.bincount(plan.strata[is_counted], minlength=len(RATES))

    accuracies = []
    for run, hit in zip(runs, hits, strict=True):
        interval = share(hit, strata, sizes(is_predicted))
        ends = interval.value, interval.low, interval.high
        accuracies.append(Accuracy(*run.run, *ends, run.can_be_chosen))
    comparisons = []
    for (other, others), (run, own) in combinations(zip(runs, hits, strict=True), 2):
        differ = is_predicted & (run.predictions != other.predictions)
        interval = difference(
            (own - others)[differ[rows]],
            strata[differ[rows]],
            sizes(differ),
            float(differ.sum() / is_predicted.sum()),
        )
        ends = interval.value, interval.low, interval.high
        is_known = interval.low == interval.high
        is_decided = is_known or not interval.low <= 0 <= interval.high
        comparisons.append(Comparison(*run.run, *other.run, *ends, is_decided))
    audit = Audit(
        dataset=dataset,
        split=plan.split,
        images=int(is_predicted.sum()),
        answered=len(asked),
        cannot_tell=len(asked) - len(known),
        none_of_these=sum(answer.kind == NONE for answer in known.values()),
        plan=plan.digest,
        sentence="",
        accuracies=accuracies,
        comparisons=comparisons,
    )
    return replace(audit, sentence=verdict(audit))


class Mean(NamedTuple):
    """The estimated mean over a population, and its variance."""

    value: float
    variance: float
    quantile: float  # standard errors that an interval reaches to each side

    @property
    def reach(self) -> float:
        """Half the width of the interval around the value."""
        return self.quantile * math.sqrt(self.variance)


def stratified_mean(values: Floats, strata: Ints, sizes: Ints, largest: float) -> Mean:
    """Estimate the mean over a population from values [n] of its strata [n].

    Some images of each stratum were drawn at random. A stratum without answers counts as the mean
    of all others and as one answer. `sizes` [H] are those of the population, and `largest` is the
    variance that values could have at most.
    """
    n_strata = len(sizes)
    n = np.bincount(strata, minlength=n_strata)
    n_counted = np.maximum(n, 1)
    is_answered = n > 0
    shares = sizes / sizes.sum()
    sums = np.bincount(strata, weights=values, minlength=n_strata)
    weights = sizes / n_counted
    overall = np.average(values, weights=weights[strata])
    means = np.where(is_answered, sums / n_counted, overall)
    deviations = (values - means[strata]) ** 2
    squares = np.bincount(strata, weights=deviations, minlength=n_strata)
    free = np.maximum(n - 1, 0)
    free_and_added = free + ADDED
    variances = (squares + ADDED * largest) / free_and_added
    of_means = shares**2 * variances
    sampling = of_means / n_counted
    census = of_means / np.maximum(sizes, 1)
    known = np.where(is_answered, census, 0)
    left = sampling - known
    # The added variance is no estimate: it has no error of its own.
    spread = left**2 * free / free_and_added**2
    n_answered = int(np.count_nonzero(n))
    freedom = float(max(1, len(values) - n_answered))
    total_spread = float(spread.sum())
    if total_spread > 0:
        satterthwaite = float(left.sum()) ** 2 / total_spread
        freedom = min(freedom, satterthwaite)
    return Mean(
        value=float((shares * means).sum()),
        variance=max(0.0, float(left.sum())),
        quantile=float(stats.t.ppf((1 + LEVEL) / 2, freedom)),
    )


def share(hits: Floats, strata: Ints, sizes: Ints) -> Interval:
    """Estimate the share of a population with a property, 1 or 0 for each answer [n].

    The interval is Wilson's (1927) with the sample's effective size and Student's quantile.
    """
    mean = stratified_mean(hits, strata, sizes, largest=0.25)
    value = mean.value
    if mean.variance <= 0:
        return Interval(value, value, value, len(hits))
    # Where all or none are hits the variance of a share says nothing: two more answers do.
    n = len(hits)
    typical = (value * n + 1) / (n + 2)
    variance_of_one = typical * (1 - typical)
    # The squared quantile over the effective size.
    z2 = mean.quantile**2 * mean.variance / variance_of_one
    middle = (value + z2 / 2) / (1 + z2)
    variance = value * (1 - value) + z2 / 4
    reach = (z2 * variance) ** 0.5 / (1 + z2)
    low = max(0.0, middle - reach)
    high = min(1.0, middle + reach)
    return Interval(value, low, high, n)


def difference(leads: Floats, strata: Ints, sizes: Ints, apart: float) -> Interval:
    """Estimate the difference in accuracy between one classifier and another.

    Where both predict the same there is no difference. So the images on which they differ are a
    population of their own: the share `apart` of all images, `sizes` [H] of them in each stratum.

    `leads` [n] of the asked images among them are 1 where the first is right, -1 where the second
    is, and 0 where none is.
    """
    n = len(leads)
    if not n:
        return Interval(0.0, -apart, apart, n)
    mean = stratified_mean(leads, strata, sizes, largest=1.0)
    low = max(-1.0, mean.value - mean.reach)
    high = min(1.0, mean.value + mean.reach)
    return Interval(apart * mean.value, apart * low, apart * high, n)


def answered_prefix(plan: SamplingPlan, answers: Answers) -> dict[int, Answer]:
    """Return the answers by row in the order of the plan, up to the first image that has none."""
    names = plan.images["image_id"].to_pylist()
    rows = takewhile(lambda row: names[row] in answers, plan.order.tolist())
    prefix = {row: answers[names[row]] for row in rows}
    if len(prefix) < len(answers):
        log.warning(
            "%d answers are left out: they are about images after the first one without an answer.",
            len(answers) - len(prefix),
        )
    return prefix


def verdict(audit: Audit) -> str:
    """Name the best run, and say whether it is decidedly better than the others."""
    name = run_names(audit)
    best = audit.best or audit.accuracies[0]
    value = f"{_percent(best.value)} % of the images ({_interval(best)})"
    lead = "The best model is" if _is_decided(audit) else "So far the best is"
    sentences = [f"{lead} {name[best.run]}, right on {value}."]
    for comparison in comparisons_of_best(audit):
        _, other = comparison.runs
        sentences.append(_comparison_sentence(comparison, name[other]))
    return " ".join(sentences)


def _is_decided(audit: Audit) -> bool:
    return all(comparison.decided for comparison in comparisons_of_best(audit))


def comparisons_of_best(audit: Audit) -> list[Comparison]:
    """Compare the best run with the best run of another method, and with the baseline."""
    if (best := audit.best) is None:
        return []
    others = [
        run for run in audit.accuracies if run.can_be_chosen and run.method != best.method
    ]
    next_best = sorted(others, key=lambda run: -run.value)[:1]
    baselines = [run for run in others if run.method == BASELINE]
    wanted = dict.fromkeys(run.run for run in next_best + baselines)
    comparisons = [audit.compare(best.run, run) for run in wanted]
    return [comparison for comparison in comparisons if comparison]


def run_names(audit: Audit) -> dict[Run, str]:
    """Return the name of each run: its method, and the seed where the method has several."""
    times = Counter(run.method for run in audit.accuracies)
    return {
        run.run: run.method if times[run.method] == 1 else f"{run.method} (seed {run.seed})"
        for run in audit.accuracies
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(estimate: Accuracy | Comparison) -> str:
    return f"{_percent(estimate.low)} to {_percent(estimate.high)}"


def _comparison_sentence(comparison: Comparison, other: str) -> str:
    points = f"{_percent(comparison.value)} points ({_interval(comparison)})"
    if not comparison.decided:
        return f"It is not decided whether it beats {other} (so far {points})."
    if comparison.value == 0:
        return f"It is right as often as {other}."
    return f"It is better than {other} by {points}."


def as_texts(folder: Path, audit: Audit) -> dict[str, Any]:
    """Return the verdict, a table (head, rows) of accuracies, and the next steps."""
    name = run_names(audit)
    order = sorted(audit.accuracies, key=lambda run: -run.value)
    rows = [[name[run.run], _percent(run.value), _interval(run)] for run in order]
    steps = []
    if audit.answered < audit.images and not _is_decided(audit):
        budget = min(audit.images, 10 * math.ceil(audit.answered / 5))
        command = f"latteclip audit {shlex.quote(str(folder))} --budget {budget}"
        steps.append(("To decide more, answer twice as many:", command))
    text = (
        "Run the workflow again as before: it chooses the model by these answers where they "
        "decide, and shows them on the page."
    )
    return {
        "sentence": audit.sentence,
        "tables": [(["model", "right, %", "95 % interval"], rows)],
        "steps": [*steps, (text, run_command(folder))],
    }


def score_audit(
    dataset: str,
    images_path: str,
    plan_path: str,
    answers_path: str,
    runs: Sequence[RunFiles],
    output: str,
) -> None:
    """Write an `Audit` as JSON. Without enough answers, `sentence` gives the reason."""
    try:
        plan = read_plan(plan_path, *tables.read_unlabelled(images_path, training=False))
        saved = plan.schema(dataset).read(Path(answers_path))
        saved.warn(answers_path, Path(answers_path).parents[2])
        audit = score(dataset, plan, read_predictions(dataset, plan, runs), saved.asked)
    except UserError as error:  # answers about other images stop no run of the workflow
        log.warning("%s", error)
        audit = Audit(dataset, "", 0, 0, 0, 0, "", str(error), [], [])
    write_record(output, audit)
    log.info("%s: %s", dataset, audit.sentence)
