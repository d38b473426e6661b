"""The images of an audit, what runs predict of them, and the accuracies of runs by answers.

Every beginning of the images is a stratified sample. Letters: N images, K runs, H strata, n
answers.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.answers import ANSWERS, UNSURE, Answer, AnswerFile, locate
from latteclip.core.errors import UserError
from latteclip.core.files import digest, read_object, write_record
from latteclip.core.run_options import run_command
from latteclip.core.tables import ClassesMetadata
from latteclip.evaluate.results import (
    MISSING,
    Audit,
    AuditedRun,
    Run,
    RunFiles,
    pool_seeds,
    predicted_classes,
)
from latteclip.labels.guarantees import (
    MANY,
    MIN_ANSWERS,
    Interval,
    difference,
    share,
)
from latteclip.labels.votes import Bools, Ints

log = logging.getLogger(__name__)
TEST = "test"  # the split that no model learned from
TRAIN = "train"
# How often an image is drawn on which all runs agree, and on which some disagree. Where they agree,
# an answer says nothing about their difference. After Neyman (1934), rates are proportional to
# standard deviations.
RATES = np.array([0.3, 1.0])  # [H]
# Share of the images that a run may leave unpredicted, else it is left out. It may be of an earlier
# index, or have learned from a few images of a plan, whose files were renamed after the drawing.
MAX_MISSING = 0.1


@dataclass(frozen=True)
class SamplingPlan:
    """The N images of an audit that are there, in the order in which they are asked about."""

    # Test, or train for the images of the training and validation splits.
    split: str
    file: AnswerFile  # about these images, and the classes as they are now
    strata: Ints  # [N]


def of_split(index: pa.Table, split: str) -> pa.Table:
    """Return the images of an index that are in the test split, or those that are not."""
    is_test = pc.equal(index["split"], "test")
    return index.filter(is_test if split == TEST else pc.invert(is_test))


def read_plan(
    path: Path, index: pa.Table, classnames: Sequence[str]
) -> SamplingPlan:
    """Read what a plan says of the images that an index still has.

    The rest is a stratified sample as before, for no image is gone because of an answer.
    """
    split = path.parent.name
    table = tables.read(path)
    if not _is_plan(table):
        raise UserError(
            f"{path} is another table than the plan of an audit; move the folder {path.parent} "
            "away to begin a new audit."
        )
    contents = [checksum.hex() for checksum in table["checksum"].to_pylist()]
    index = of_split(index, split)
    rows = locate(
        list(zip(table["image_id"].to_pylist(), contents, strict=True)), index
    )
    strata = table.filter(pc.is_valid(rows))["stratum"].to_numpy().astype(np.int_)
    images, plan = index.take(rows.drop_null()), digest(path.read_bytes())[:16]
    file = AnswerFile(path.with_name(ANSWERS), images, classnames, plan)
    return SamplingPlan(split, file, strata)


def _is_plan(table: pa.Table) -> bool:
    """Return whether a table has the columns of a plan, whose cells are whole."""
    try:
        table.validate(full=True)  # texts are UTF-8
    except pa.ArrowInvalid:
        return False
    has_null = any(column.null_count for column in table.columns)
    return table.schema.equals(tables.PLAN) and not has_null


def read_predictions(
    runs: Sequence[RunFiles],
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    split: str,
) -> dict[Run, Ints]:
    """Return what runs predict of images [N], MISSING where all seeds of a method learned from one.

    Left out are runs that read labels, that have other classes, or that predict none of the images.
    """
    predicted: dict[Run, Ints] = {}
    for run in runs:
        path = run.predictions if split == TEST else run.train_predictions
        has_classes = tables.read_metadata(path, ClassesMetadata).classnames == [
            *classnames
        ]
        if has_classes and "supervised" not in read_object(run.metrics)["flags"]:
            predicted[run.run] = predicted_classes(path, image_ids)
    if split != TEST:
        methods = [method for method, _ in predicted]
        pooled = pool_seeds([*predicted.values()], methods)
        predicted = dict(zip(predicted, pooled, strict=True))
    return {run: row for run, row in predicted.items() if (row != MISSING).any()}


def predictions_of(
    plan: SamplingPlan, runs: Sequence[RunFiles]
) -> dict[Run, Ints]:
    """Return what the runs predict that predict most images of a plan, or raise UserError."""
    ids = plan.file.images["image_id"]
    read = read_predictions(runs, ids, plan.file.classnames, plan.split)
    predicted = {run: row for run, row in read.items() if predicts_most(run, row)}
    if not predicted:
        raise UserError(
            "No model predicts the images of this audit. Run the workflow, or move the folder "
            f"audit/{plan.split} of the results away to begin a new one."
        )
    return predicted


def predicts_most(run: Run, classes: Ints) -> bool:
    """Return whether a run predicts most images, and log that it is left out if not."""
    if (classes == MISSING).mean() <= MAX_MISSING:
        return True
    log.warning("%s predicts few images of the audit and is left out.", run[0])
    return False


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
    is_predicted = np.all(
        [classes != MISSING for classes in predicted.values()], axis=0
    )
    names = plan.file.images["image_id"].to_pylist()
    known = {
        row: answers[name]
        for row, name in enumerate(takewhile(lambda name: name in answers, names))
        if is_predicted[row] and answers[name].kind != UNSURE
    }
    n_images = int(is_predicted.sum())
    if len(known) < MIN_ANSWERS:
        sentence = (
            f"It takes {MIN_ANSWERS} answers that name a class or none, and there are "
            f"{len(known)}: latteclip audit results/{dataset}."
        )
        return Audit(dataset, plan.split, n_images, len(known), sentence, [])
    rows = np.array([*known])
    label_of = {name: label for label, name in enumerate(plan.file.classnames)}
    labels = [
        label_of.get(answer.classname or "", MISSING) for answer in known.values()
    ]
    hits = {
        run: (classes[rows] == labels).astype(float)
        for run, classes in predicted.items()
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
        return difference(
            leads, strata[is_asked], sizes(differ), differ.sum() / n_images
        )

    accuracies = {
        run: share(hits[run], strata, sizes(is_predicted)) for run in predicted
    }
    order = sorted(predicted, key=lambda run: -accuracies[run].value)
    scored = [
        AuditedRun(*run, accuracies[run], [lead(run, other) for other in order])
        for run in order
    ]
    sentence = verdict(scored)
    return Audit(dataset, plan.split, n_images, len(known), sentence, scored)


def verdict(runs: Sequence[AuditedRun]) -> str:
    """Name the best run, and say whether it is decidedly better than those of other methods."""
    best = runs[0]
    others = [
        (_name(run), lead)
        for run, lead in zip(runs, best.leads, strict=True)
        if run.method != best.method
    ]
    better = [name for name, lead in others if lead.is_decided and lead.value > 0]
    undecided = [name for name, lead in others if not lead.is_decided]
    start = "So far the best is" if undecided else "The best model is"
    sentence = (
        f"{start} {_name(best)}, right on {best.accuracy.words()} of the images."
    )
    if better:
        sentence += f" It is better than {', '.join(better)}."
    if undecided:
        sentence += (
            f" Answers do not decide yet between it and {', '.join(undecided)}."
        )
    return sentence


def _name(run: AuditedRun) -> str:
    return f"{run.method} (seed {run.seed})" if run.seed else run.method


def as_texts(folder: Path, audit: Audit) -> dict[str, Any]:
    """Return the verdict, the accuracies, and the next steps."""
    lines = []
    leads = audit.runs[0].leads if audit.runs else []
    for run, lead in zip(audit.runs, leads, strict=True):
        line = f"{_name(run)}: {run.accuracy.words()}"
        if run != audit.runs[0]:
            line += f"; the best minus this: {lead.words(' points')}"
        lines.append(line)
    rerun = (
        "Run the workflow again as before: it chooses the model by these answers where they "
        "decide, and puts them on the page."
    )
    steps = [(rerun, run_command(folder))]
    if audit.answered < audit.images:
        budget = min(audit.answered + 100, audit.images)
        command = f"latteclip audit {shlex.quote(str(folder))} --budget {budget}"
        steps.append(("To decide more, answer more:", command))
    return {"sentence": audit.sentence, "lines": lines, "steps": steps}


def score_audit(
    dataset: str,
    images_path: str,
    plan_path: str,
    runs: Sequence[RunFiles],
    output: str,
) -> None:
    """Write an `Audit` as JSON. Without enough answers, `sentence` gives the reason."""
    path = Path(plan_path)
    try:
        plan = read_plan(
            path, *tables.read_unlabelled(images_path, training=False)
        )
        saved = plan.file.read()
        saved.warn(plan.file.path, path.parents[2])
        audit = score(dataset, plan, predictions_of(plan, runs), saved.asked)
    # Answers about other images stop no run of the workflow.
    except UserError as error:
        log.warning("%s", error)
        audit = Audit(dataset, "", 0, 0, str(error), [])
    write_record(output, audit)
    log.info("%s: %s", dataset, audit.sentence)
