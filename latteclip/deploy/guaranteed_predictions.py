"""Guarantee the predictions of a model by a person's answers.

The answers are about training images that were drawn at random (`latteclip teach`) and that the
classifier did not learn from. They set the probability below which a prediction is abstained from.
"""

import logging
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from latteclip.clip.model_files import MODEL, result_file
from latteclip.core import tables
from latteclip.core.answers import ANSWERS, CHECK, read_answer_file
from latteclip.core.errors import UserError
from latteclip.core.files import read_record
from latteclip.evaluate.results import Selection
from latteclip.labels.fusion_report import (
    LABELS,
    NAME,
    Check,
    FusionReport,
    read_fusion_report,
)
from latteclip.labels.guarantees import fewest_answers, pac_threshold
from latteclip.train.settings import TrainingMetadata

if TYPE_CHECKING:
    from latteclip.clip.model import FinetunedModel

log = logging.getLogger(__name__)
Classify = Callable[[Sequence[str]], Sequence[Any]]  # image files to `Prediction`s


def run_of(model: Path) -> tuple[Path, str]:
    """Return the folder of a model's run, and why the workflow chose the model, if it did."""
    run = model.absolute().parent
    selection_file = run / f"selection{model.name.removeprefix(MODEL)}.json"
    if not selection_file.is_file():
        return run, ""
    selection = read_record(Selection, selection_file)
    return run / selection.method / f"seed{selection.seed}", selection.reason


def guarantee(threshold: float, max_error: float) -> str:
    """Return the promise of a threshold in words."""
    return (
        f"Predictions with a probability below {threshold:.4f} are abstained from: with 95 % "
        f"probability, at most {100 * max_error:g} % of all predictions are wrong and not "
        "abstained from, for images like the training images."
    )


def abstention_threshold(
    model: "FinetunedModel", classify: Classify, max_error: float
) -> float:
    """Return the probability that a prediction needs for the guarantee, and log the guarantee.

    With 95 % probability, at most the share `max_error` of all predictions is wrong and not
    abstained from. Raises UserError if too few answers check the model.
    """
    path = result_file(NAME, model.folder, "--abstain")
    report, folder = read_fusion_report(path), path.parent
    check, share = _check_by_folds(model, report, folder), 1.0
    if check is None:
        ids, share = _unseen(model, report)
        column = tables.lookup_column(
            folder / "images.parquet", "path", pa.chunked_array([ids], pa.string())
        )
        answers = map(report.answers.get, ids)
        class_of = dict(zip(column.to_pylist(), answers, strict=True))
        check = [
            (
                one.probability,
                model.classnames[one.topk_labels[0]] == class_of[one.path],
            )
            for one in classify(list(class_of))
        ]
    threshold = threshold_of(check, max_error, report, folder, share)
    log.info(
        "%s It rests on %d answers.", guarantee(threshold, max_error), len(check)
    )
    return threshold


def threshold_of(
    check: Check,
    max_error: float,
    report: FusionReport,
    folder: Path,
    share: float = 1.0,
) -> float:
    """Return the probability that a label or prediction needs for a guarantee.

    With 95 % probability, at most the share `max_error` of all is wrong and above it. UserError:
    too few answers check the results in the folder, and about a `share` of its images they would.
    """
    n, needed = len(check), fewest_answers(max_error)
    if n < needed:
        raise UserError(
            f"A guarantee of {max_error:g} takes {needed:,} answers about images that were drawn "
            f"at random and that the model did not learn from, and there are {n}"
            f"{_advice(needed - n, share, report, folder)}."
        )
    confidence, right = map(np.array, zip(*check, strict=True))
    return pac_threshold(confidence, ~right, max_error)


def _advice(missing: int, share: float, report: FusionReport, folder: Path) -> str:
    """Return the end of a sentence: what to do where answers about a share of images count."""
    path = folder / ANSWERS
    saved = read_answer_file(path).entries if path.exists() else []
    phases = [one.phase for one in saved]
    if missing > share * (report.zero_shot.votes - len(saved)):
        others = ", or use image_prototypes or a model trained on fused labels"
        return (
            ", and answers about other images cannot add the rest; allow a larger share of errors"
            f"{others if share < 1 else ''}"
        )
    more = math.ceil(missing / share)
    budget = sum(not one.is_imported for one in saved) + more
    if CHECK not in phases:  # the first half teaches
        budget = max(2 * more, budget)
    return (
        f": latteclip teach {shlex.quote(str(folder))} --budget {budget}, then run the workflow "
        "again"
    )


def _check_by_folds(
    model: "FinetunedModel", report: FusionReport, folder: Path
) -> Check | None:
    """Return the check of a classifier that `fuse_labels` made. None: another stage made it.

    It learned from answers, but what checks it are classifiers without the answer, of five folds.
    """
    # Here: labels are exported without torch.
    from latteclip.clip.classifier import load_classifier

    for name in report.checks.keys() - {LABELS}:
        classifier, _ = load_classifier(
            folder / "classifiers" / f"{name}.safetensors"
        )
        if classifier.weights.equal(model.classifier.weights):
            return report.checks[name]
    return None


def _unseen(
    model: "FinetunedModel", report: FusionReport
) -> tuple[list[str], float]:
    """Return which images that check a run did not learn from, and the share that it leaves out."""
    run, _ = run_of(model.folder)
    history = run / "history.parquet"
    if not history.is_file():  # nothing was trained
        return report.checking, 1.0
    training = tables.read_metadata(history, TrainingMetadata)
    # On fused labels, the next training leaves out all images that check.
    unseen, share = training.drawn, 1.0
    if training.labels != "fused":
        predicted = tables.read(run / "train_predictions.parquet", ["image_id"])
        # Of an average, each training learned from what the others left out.
        unseen = [] if training.averaged else predicted["image_id"].to_pylist()
        share = len(unseen) / report.zero_shot.votes
    known = {*unseen}
    return [image for image in report.checking if image in known], share
