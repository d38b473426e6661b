"""Accuracies and differences of runs by a person's answers, with 95 % intervals, and what to do.

Letters: N images, K runs, H strata, n answers.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from latteclip.audit.sampling import (
    RATES,
    TEST,
    Ints,
    SamplingPlan,
    predictions_of,
    read_plan,
)
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.core.run_options import run_command
from latteclip.evaluate.results import (
    MISSING,
    Audit,
    AuditedRun,
    Run,
    RunFiles,
    read_metrics,
)
from latteclip.labels.answers import NONE, UNSURE, Answer
from latteclip.labels.guarantees import (
    MANY,
    MIN_ANSWERS,
    Bools,
    Floats,
    Interval,
    difference,
    share,
)

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
    dataset: str,
    plan: SamplingPlan,
    runs: Sequence[RunPredictions],
    answers: Mapping[str, Answer],
) -> Audit:
    """Estimate the accuracies of runs and all their differences from answers by image.

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
        sentence=(
            f"There are {len(known)} answers that name a class or none; give at least "
            f"{MIN_ANSWERS}: latteclip audit results/{dataset}."
        ),
        runs=[],
    )
    if len(known) < MIN_ANSWERS:
        return audit
    rows = np.array([*known])
    label_of = {name: label for label, name in enumerate(plan.classnames)}
    labels = [label_of.get(answer.classname or "", MISSING) for answer in known.values()]
    strata = plan.strata[rows]
    # Training images stand for new ones: however many are asked about, others remain.
    scale = 1 if plan.split == TEST else MANY

    def sizes(is_counted: Bools) -> Ints:
        """Return the sizes [H] of the strata of a population."""
        return scale * np.bincount(plan.strata[is_counted], minlength=len(RATES))

    def hits(run: RunPredictions) -> Floats:
        return np.asarray(run.predictions[rows] == labels, np.float64)

    def lead(run: RunPredictions, other: RunPredictions) -> Interval:
        differ = is_predicted & (run.predictions != other.predictions)
        is_asked = differ[rows]
        leads = (hits(run) - hits(other))[is_asked]
        apart = float(differ.sum() / is_predicted.sum())
        return difference(leads, strata[is_asked], sizes(differ), apart)

    scored = [
        AuditedRun(
            *run.run,
            run.can_be_chosen,
            share(hits(run), strata, sizes(is_predicted)),
            [lead(run, other) for other in runs],
        )
        for run in runs
    ]
    audit = replace(audit, runs=scored)
    return replace(audit, sentence=verdict(audit))


def answered_prefix(plan: SamplingPlan, answers: Mapping[str, Answer]) -> dict[int, Answer]:
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
    best = audit.best
    better, undecided = [], []
    for run, lead in _beside_best(audit):
        if run.can_be_chosen and run.method != best.method:
            if not lead.is_decided:
                undecided.append(_name(run))
            elif lead.value > 0:
                better.append(_name(run))
    start = "So far the best is" if undecided else "The best model is"
    sentence = f"{start} {_name(best)}, right on {best.accuracy.words()} of the images."
    if better:
        sentence += f" It is better than {', '.join(better)}."
    if undecided:
        sentence += f" Answers do not decide yet between it and {', '.join(undecided)}."
    return sentence


def _beside_best(audit: Audit) -> list[tuple[AuditedRun, Interval]]:
    """Return the runs, the most accurate first, and by how much the best one leads each."""
    pairs = zip(audit.runs, audit.best.leads, strict=True)
    return sorted(pairs, key=lambda pair: -pair[0].accuracy.value)


def _name(run: AuditedRun) -> str:
    return f"{run.method} (seed {run.seed})" if run.seed else run.method


def as_texts(folder: Path, audit: Audit) -> dict[str, Any]:
    """Return the verdict, the accuracies, and the next steps."""
    lines = []
    for run, lead in _beside_best(audit) if audit.runs else []:
        line = f"{_name(run)}: {run.accuracy.words()}"
        if run != audit.best:
            line += f"; the best is better by {lead.words(' points')}"
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
        audit = Audit(dataset, "", 0, 0, 0, 0, str(error), [])
    write_record(output, audit)
    log.info("%s: %s", dataset, audit.sentence)
