"""Accuracies and differences of runs by a person's answers, with 95 % intervals, and what to do.

Letters: N images, K runs, H strata, n answers.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from latteclip.audit.sampling import (
    RATES,
    TEST,
    Ints,
    SamplingPlan,
    read_plan,
    read_predictions,
)
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.core.run_options import run_command
from latteclip.core.terminal import counted
from latteclip.evaluate.results import (
    MISSING,
    Audit,
    AuditedRun,
    Run,
    RunFiles,
)
from latteclip.labels.answers import UNSURE, Answer
from latteclip.labels.guarantees import (
    MANY,
    MIN_ANSWERS,
    Bools,
    Interval,
    difference,
    share,
)

log = logging.getLogger(__name__)
# Share of a plan's images that a run may leave unpredicted, else it is left out. It may have
# learned from a few of them, whose files were renamed after the drawing.
MAX_MISSING = 0.1


def predictions_of(plan: SamplingPlan, runs: Sequence[RunFiles]) -> dict[Run, Ints]:
    """Return what the runs predict that predict most images of a plan, or raise UserError."""
    ids = plan.images["image_id"]
    predicted = read_predictions(runs, ids, plan.classnames, plan.split)
    for run in list(predicted):
        if (predicted[run] == MISSING).mean() > MAX_MISSING:
            log.warning("%s predicts few images of the audit and is left out.", run[0])
            del predicted[run]
    if not predicted:
        raise UserError(
            "No model predicts the images of this audit. Run the workflow, or move the folder "
            f"audit/{plan.split} of the results away to begin a new one."
        )
    return predicted


def score(
    dataset: str,
    plan: SamplingPlan,
    predicted: Mapping[Run, Ints],
    answers: Mapping[str, Answer],
) -> Audit:
    """Estimate the accuracies of runs and all their differences from answers by image.

    Answers "cannot tell" are left out, and the other images of their stratum represent them. So are
    answers after the first image without one, for the sample is a prefix of the order, and images
    that a run does not predict.
    """
    is_predicted = np.all([classes != MISSING for classes in predicted.values()], axis=0)
    known = {
        row: answer
        for row, answer in answered_prefix(plan, answers).items()
        if is_predicted[row] and answer.kind != UNSURE
    }
    n_images = int(is_predicted.sum())
    if len(known) < MIN_ANSWERS:
        sentence = (
            f"There are {len(known)} answers that name a class or none; give at least "
            f"{MIN_ANSWERS}: latteclip audit results/{dataset}."
        )
        return Audit(dataset, plan.split, n_images, len(known), sentence, [])
    rows = np.array([*known])
    label_of = {name: label for label, name in enumerate(plan.classnames)}
    labels = [label_of.get(answer.classname or "", MISSING) for answer in known.values()]
    hits = {
        run: (classes[rows] == labels).astype(float) for run, classes in predicted.items()
    }
    strata = plan.strata[rows]
    # Training images stand for new ones: however many are asked about, others remain.
    scale = 1 if plan.split == TEST else MANY

    def sizes(is_counted: Bools) -> Ints:
        """Return the sizes [H] of the strata of a population."""
        return scale * np.bincount(plan.strata[is_counted], minlength=len(RATES))

    def lead(run: Run, other: Run) -> Interval:
        differ = is_predicted & (predicted[run] != predicted[other])
        is_asked = differ[rows]
        leads = (hits[run] - hits[other])[is_asked]
        return difference(leads, strata[is_asked], sizes(differ), differ.sum() / n_images)

    scored = [
        AuditedRun(
            *run,
            share(hits[run], strata, sizes(is_predicted)),
            [lead(run, other) for other in predicted],
        )
        for run in predicted
    ]
    audit = Audit(dataset, plan.split, n_images, len(known), "", scored)
    return replace(audit, sentence=verdict(audit))


def answered_prefix(plan: SamplingPlan, answers: Mapping[str, Answer]) -> dict[int, Answer]:
    """Return the answers by row in the order of the plan, up to the first image that has none."""
    names = plan.images["image_id"].to_pylist()
    rows = takewhile(lambda row: names[row] in answers, plan.order.tolist())
    prefix = {row: answers[names[row]] for row in rows}
    if len(prefix) < len(answers):
        log.warning(
            "Left out, for they come after the first image without an answer: %s.",
            counted(len(answers) - len(prefix), "answer"),
        )
    return prefix


def verdict(audit: Audit) -> str:
    """Name the best run, and say whether it is decidedly better than those of other methods."""
    best = audit.best
    better, undecided = [], []
    for run, lead in _beside_best(audit):
        if run.method == best.method:
            continue
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
            line += f"; the best minus this: {lead.words(' points')}"
        lines.append(line)
    rerun = (
        "Run the workflow again as before: it chooses the model by these answers where they "
        "decide, and puts them on the page."
    )
    steps = [(rerun, run_command(folder))]
    if audit.answered < audit.images:
        budget = audit.answered + 100
        command = f"latteclip audit {shlex.quote(str(folder))} --budget {budget}"
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
        saved = plan.schema().read(Path(answers_path))
        saved.warn(answers_path, Path(answers_path).parents[2])
        audit = score(dataset, plan, predictions_of(plan, runs), saved.asked)
    except UserError as error:  # answers about other images stop no run of the workflow
        log.warning("%s", error)
        audit = Audit(dataset, "", 0, 0, str(error), [])
    write_record(output, audit)
    log.info("%s: %s", dataset, audit.sentence)
