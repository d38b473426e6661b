"""Guarantee the predictions of a model by a person's answers.

The answers are about training images that were drawn at random (`latteclip teach`) and that the
classifier did not learn from. They set the probability below which a prediction is abstained from.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.clip.finetuned import MODEL, FinetunedModel
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate.predictions import read_held_out
from latteclip.evaluate.results import read_selection
from latteclip.labels import fusion_report
from latteclip.labels.fusion_report import Check, PersonAnswers
from latteclip.labels.guarantees import fewest_answers, pac_threshold, smallest_share
from latteclip.train.settings import TrainingMetadata

log = logging.getLogger(__name__)
Classify = Callable[[Sequence[str]], Sequence[Any]]  # image files to `Prediction`s


def result_file(name: str, model: Path, option: str) -> Path:
    """Return a file in the folder results/<dataset> of a model, or raise UserError."""
    # A model is in results/<dataset>/<method>/seed<n>/model.
    for place in model.absolute().parents[:3]:
        if (place / name).is_file():
            return place / name
    raise UserError(
        f"{model} is not in the results of a dataset with {name}, which {option} reads; run the "
        "workflow, and name the model as it lies there."
    )


def run_of(model: Path) -> tuple[Path, str]:
    """Return the folder of a model's run, and why the workflow chose the model, if it did."""
    run = model.absolute().parent
    selection_file = run / f"selection{model.name.removeprefix(MODEL)}.json"
    if not selection_file.is_file():
        return run, ""
    selection = read_selection(selection_file)
    return run / selection.method / f"seed{selection.seed}", selection.reason


def abstention_threshold(
    model: FinetunedModel, classify: Classify, max_error: float
) -> float:
    """Return the probability that a prediction needs for the guarantee, and log the guarantee.

    With 95 % probability, at most the share `max_error` of all predictions is wrong and not
    abstained from. Raises UserError if too few answers check the model.
    """
    path = result_file(fusion_report.NAME, model.folder, "--abstain")
    folder = path.parent
    answers = fusion_report.read_fusion_report(path).answers
    index, _ = tables.read_unlabelled(folder / "images.parquet", training=True)
    most = len(index) - answers.n_teaching
    require_answers(len(answers.checking), most, max_error, folder)
    check = _check_of(model, answers, folder)
    how = "each left out of the classifier that it checks (five folds)"
    if check is None:
        ids = _require_unseen(model, answers.checking, max_error, folder)
        check = _check(
            model, folder, {name: answers.images[name] for name in ids}, classify
        )
        how = "which the model was not trained on"
    is_wrong = ~np.array(check.right, dtype=bool)
    threshold = pac_threshold(np.array(check.confidence), is_wrong, max_error)
    log.info(
        "Predictions with a probability below %.4f are abstained from: with 95 %% probability, at "
        "most %g %% of all predictions are wrong and not abstained from. This holds for images "
        "like the training images of %s without the %d that were chosen to teach. It rests on %d "
        "answers about such images drawn at random, %s.",
        threshold,
        100 * max_error,
        folder,
        answers.n_teaching,
        len(is_wrong),
        how,
    )
    return threshold


def require_answers(
    n: int, most: int, share: float, folder: Path, *, on_average: bool = False
) -> None:
    """Raise UserError if n answers about images drawn at random are too few for a guarantee.

    There can be `most` such answers, which may be too few as well.
    """
    needed = fewest_answers(share, on_average=on_average)
    if n >= needed:
        return
    if needed > most:
        least = smallest_share(max(1, most), on_average=on_average)
        raise UserError(
            f"A guarantee of {share:g} is out of reach: it takes {needed:,} answers about images "
            f"that were drawn at random, and {folder} has {most:,} such images. With answers about "
            f"all of them, {least:g} is in reach."
        )
    raise UserError(
        f"A guarantee of {share:g} takes at least {needed} answers about images that were drawn at "
        f"random, and there are {n}: latteclip teach {folder} --budget {2 * needed}, then run the "
        "workflow again."
    )


def _check_of(model: FinetunedModel, answers: PersonAnswers, folder: Path) -> Check | None:
    """Return the check of a model whose classifier `fuse_labels` made, which learned of answers."""
    checks = answers.checked.classifiers if answers.checked else {}
    for name, check in checks.items():
        path = folder / "classifiers" / f"{name}.safetensors"
        classifier, _ = load_classifier(path)
        if torch.equal(classifier.weights, model.classifier.weights):
            return check
    return None


def _require_unseen(
    model: FinetunedModel, ids: Sequence[str], share: float, folder: Path
) -> list[str]:
    """Return the answered images that a run did not learn from, or raise UserError if too few."""
    unseen = _unseen(model, ids)
    needed = fewest_answers(share)
    if len(unseen) >= needed:
        return unseen
    other = folder / "image_prototypes" / "seed0" / "model"
    raise UserError(
        f"A guarantee of {share:g} takes at least {needed:,} answers about images that the model "
        f"did not learn from, and there are {len(unseen)}: use {other}, whose guarantee counts all "
        f"{len(ids):,} answers, or answer more (latteclip teach {folder}) and run the workflow "
        "again."
    )


def _unseen(model: FinetunedModel, ids: Sequence[str]) -> list[str]:
    """Return which answered images a run did not learn from."""
    run, _ = run_of(model.folder)
    history = run / "history.parquet"
    if not history.is_file():  # nothing was trained
        return list(ids)
    described = tables.read_metadata(history, TrainingMetadata)
    drawn = set(described.drawn)
    if drawn or described.labels == "fused":
        return [image for image in ids if image in drawn]
    if described.averaged is not None:  # another of its trainings learned from them
        return []
    predictions = str(run / "train_predictions.parquet")
    table = read_held_out(predictions, model.classnames)
    held_out = set(table["image_id"].to_pylist())
    return [image for image in ids if image in held_out]


def _check(
    model: FinetunedModel,
    folder: Path,
    answers: Mapping[str, str | None],
    classify: Classify,
) -> Check:
    """Return the predictions of a model for images with answers, and whether they are right."""
    index = folder / "images.parquet"
    paths = tables.lookup(index, tables.IMAGES, "image_id", "path", list(answers))
    class_of = dict(zip(paths, answers.values(), strict=True))
    check = Check([], [])
    for prediction in classify(paths):
        [label] = prediction.topk_labels
        check.confidence.append(prediction.probability)
        check.right.append(model.classnames[label] == class_of[prediction.path])
    return check
