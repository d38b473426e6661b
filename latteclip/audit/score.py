"""Accuracies and differences of runs by a person's answers, with 95 % intervals, and what to do.

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
from typing import Any

import numpy as np
import numpy.typing as npt

from latteclip.audit.sampling import (
    BASELINE,
    RATES,
    TEST,
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
from latteclip.labels.guarantees import MANY, MIN_ANSWERS, difference, share

log = logging.getLogger(__name__)
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
