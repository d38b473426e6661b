"""Accuracies and differences of runs by a person's answers, with 95 % intervals, and what to do.

Letters: N images, K runs, H strata, n answers.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latteclip.audit.sampling import (
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
from latteclip.labels.guarantees import MANY, MIN_ANSWERS, Interval, difference, share

log = logging.getLogger(__name__)
# Share of a plan's images that a run may leave unpredicted, else it is left out. It may have
# learned from a few of them, whose files were renamed after the drawing.
MAX_MISSING = 0.1


@dataclass(frozen=True)
class RunPredictions:
    """What a run predicts of the images of a plan."""

    run: Run
    can_be_chosen: bool  # it reads no label, and it has a model
    predictions: Ints  # [N]


def read_predictions(plan: SamplingPlan, runs: Sequence[RunFiles]) -> list[RunPredictions]:
    """Return what the runs predict that predict most images of a plan, or raise UserError."""
    found = []
    of_runs = predictions_of(runs, plan.images["image_id"], plan.classnames, plan.split)
    for files, predictions in zip(runs, of_runs, strict=True):
        if (predictions == MISSING).mean() > MAX_MISSING:
            log.warning(
                "%s predicts few images of the audit and is left out.", files.method
            )
            continue
        reads_labels = "supervised" in read_metrics(files.metrics)["flags"]
        found.append(RunPredictions(files.run, not reads_labels, predictions))
    if not found:
        raise UserError(
            "No model predicts the images of this audit. Run the workflow, or move the folder "
            f"audit/{plan.split} of the results away to begin a new one."
        )
    return found


def score(
    dataset: str, plan: SamplingPlan, runs: Sequence[RunPredictions], answers: Answers
) -> Audit:
    """Estimate the accuracies of runs and all their differences from answers.

    Answers "cannot tell" are left out, and the other images of their stratum represent them. So are
    answers after the first image without one, for the sample is a prefix of the order, and images
    that a run does not predict.
    """
    is_predicted = np.all([run.predictions != MISSING for run in runs], axis=0)
    prefix = answered_prefix(plan, answers).items()
    asked = {row: answer for row, answer in prefix if is_predicted[row]}
    known = {row: answer for row, answer in asked.items() if answer.kind != UNSURE}
    audit = Audit(
        dataset=dataset,
        split=plan.split,
        images=int(is_predicted.sum()),
        answered=len(asked),
        cannot_tell=len(asked) - len(known),
        none_of_these=sum(answer.kind == NONE for answer in known.values()),
        plan=plan.digest,
        sentence=(
            f"There are {len(known)} answers that name a class or none; give at least "
            f"{MIN_ANSWERS}: latteclip audit results/{dataset}."
        ),
        accuracies=[],
        comparisons=[],
    )
    if len(known) < MIN_ANSWERS:
        return audit
    rows = np.array([*known])
    label_of = {name: label for label, name in enumerate(plan.classnames)}
    labels = [label_of.get(answer.classname or "", MISSING) for answer in known.values()]
    strata = plan.strata[rows]
    hits = [(run.predictions[rows] == labels).astype(np.float64) for run in runs]
    # Training images stand for new ones: however many are asked about, others remain.
    scale = 1 if plan.split == TEST else MANY

    def sizes(is_counted: npt.NDArray[np.bool_]) -> Ints:
        """Return the sizes [H] of the strata of a population."""
        return scale * np.bincount(plan.strata[is_counted], minlength=len(RATES))

    accuracies = []
    for run, hit in zip(runs, hits, strict=True):
        ends = _ends(share(hit, strata, sizes(is_predicted)))
        accuracies.append(Accuracy(*run.run, *ends, run.can_be_chosen))
    comparisons = []
    for (other, others), (run, own) in combinations(zip(runs, hits, strict=True), 2):
        differ = is_predicted & (run.predictions != other.predictions)
        is_asked = differ[rows]
        apart = float(differ.sum() / is_predicted.sum())
        leads = (own - others)[is_asked]
        value, low, high = _ends(difference(leads, strata[is_asked], sizes(differ), apart))
        decided = low == high or not low <= 0 <= high
        comparisons.append(Comparison(*run.run, *other.run, value, low, high, decided))
    audit = replace(audit, accuracies=accuracies, comparisons=comparisons)
    return replace(audit, sentence=verdict(audit))


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


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
    """Name the best run, and say whether it is decidedly better than those of other methods."""
    best = audit.best or audit.accuracies[0]
    others = [run for run in by_accuracy(audit) if run.can_be_chosen]
    others = [run for run in others if run.method != best.method]
    pairs = [pair for run in others if (pair := audit.compare(best.run, run.run))]
    better = [_name(pair.runs[1]) for pair in pairs if pair.decided and pair.value > 0]
    undecided = [_name(pair.runs[1]) for pair in pairs if not pair.decided]
    lead = "So far the best is" if undecided else "The best model is"
    sentence = f"{lead} {_name(best.run)}, right on {_percent(best, ' %')} of the images."
    if better:
        sentence += f" It is better than {', '.join(better)}."
    if undecided:
        sentence += f" Answers do not decide yet between it and {', '.join(undecided)}."
    return sentence


def by_accuracy(audit: Audit) -> list[Accuracy]:
    """Return the accuracies of runs, the largest first."""
    return sorted(audit.accuracies, key=lambda run: -run.value)


def _name(run: Run) -> str:
    method, seed = run
    return f"{method} (seed {seed})" if seed else method


def _percent(estimate: Accuracy | Comparison, unit: str) -> str:
    value, low, high = (
        f"{100 * share:.1f}" for share in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}{unit} ({low} to {high})"


def as_texts(folder: Path, audit: Audit) -> dict[str, Any]:
    """Return the verdict, the accuracies, and the next steps."""
    lines = []
    for run in by_accuracy(audit):
        line = f"{_name(run.run)}: {_percent(run, ' %')}"
        if audit.best and (pair := audit.compare(run.run, audit.best.run)):
            line += f", {_percent(pair, ' points')} beside the best"
        lines.append(line)
    rerun = (
        "Run the workflow again as before: it chooses the model by these answers where they "
        "decide, and puts them on the page."
    )
    steps = [(rerun, run_command(folder))]
    if audit.answered < audit.images:
        command = (
            f"latteclip audit {shlex.quote(str(folder))} --budget {audit.answered + 100}"
        )
        steps.append(("To decide more, answer more:", command))
    return {"sentence": audit.sentence, "lines": lines, "steps": steps}


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
        audit = score(dataset, plan, read_predictions(plan, runs), saved.asked)
    except UserError as error:  # answers about other images stop no run of the workflow
        log.warning("%s", error)
        audit = Audit(dataset, "", 0, 0, 0, 0, "", str(error), [], [])
    write_record(output, audit)
    log.info("%s: %s", dataset, audit.sentence)
