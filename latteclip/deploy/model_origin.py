"""Find the run of a model in the results of its dataset, and the guarantee of its predictions.

The guarantee follows from a person's answers about training images that were drawn at random
(`latteclip teach`) and that the classifier did not learn from.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.clip.finetuned import MODEL, FinetunedModel
from latteclip.core import tables
from latteclip.core.class_groups import ClassGroups
from latteclip.core.errors import UserError
from latteclip.evaluate.results import read_selection
from latteclip.evaluate.train_predictions import read_predictions
from latteclip.labels import fusion_report
from latteclip.labels.fusion_report import PersonAnswers
from latteclip.labels.guarantees import (
    Bools,
    Floats,
    fewest_answers,
    pac_threshold,
    smallest_share,
)
from latteclip.train.data import most_drawn
from latteclip.train.history import TrainingMetadata

log = logging.getLogger(__name__)
# Image files and a number of classes to a model's `Prediction`s.
Classify = Callable[..., Sequence[Any]]


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
    """Return the folder of the run that a model is of, and why the workflow chose it if it did."""
    run = model.absolute().parent
    selection_file = run / f"selection{model.name.removeprefix(MODEL)}.json"
    if not selection_file.is_file():
        return run, ""
    selection = read_selection(selection_file)
    return run / selection.method / f"seed{selection.seed}", selection.reason


def abstention_threshold(
    model: FinetunedModel, classify: Classify, max_error: float, *, is_exact: bool = True
) -> float:
    """Return the probability that a prediction needs for the guarantee, and log the guarantee.

    With 95 % probability, at most the share `max_error` of all predictions is wrong and not
    abstained from. `is_exact`: whether `classify` gives the model's own probabilities. UserError:
    it lies outside of a dataset's results, there are too few answers, or what the answers check
    are other probabilities than those of `classify`.
    """
    path = result_file(fusion_report.NAME, model.folder, "--abstain")
    checked = _checked(model, path, classify, max_error, is_exact=is_exact)
    best = checked.confidence
    threshold = pac_threshold(best, ~checked.right, max_error)
    log.info(
        "Predictions with a probability below %.4f are abstained from: with 95 %% probability, at "
        "most %g %% of all predictions are wrong and not abstained from. %s",
        threshold,
        100 * max_error,
        checked.basis,
    )
    return threshold


def roll_up_threshold(
    model: FinetunedModel, classify: Classify, max_error: float, groups: ClassGroups
) -> float:
    """Return the probability that a group of classes needs for the guarantee, and log it.

    With 95 % probability, at most the share `max_error` of all images gets a class or a group that
    it does not belong to. UserError: see `abstention_threshold`.
    """
    path = result_file(fusion_report.NAME, model.folder, "--roll-up")
    checked = _checked(model, path, classify, max_error)
    if checked.probabilities.shape[1] != len(model.classnames):
        raise UserError(f"{path} has no probabilities of all classes; rerun the workflow.")
    confidence, is_wrong = groups.mistakes(checked.probabilities, checked.truth)
    threshold = pac_threshold(confidence, is_wrong, max_error)
    log.info(
        "Answers are the finest class or group with a probability of %.4f: with 95 %% probability, "
        "at most %g %% of all images get one that they do not belong to. %s",
        threshold,
        100 * max_error,
        checked.basis,
    )
    return threshold


@dataclass(frozen=True)
class CheckedPredictions:
    """Predictions for m images that a person answered about, made without their answers."""

    confidence: Floats  # [m]
    right: Bools  # [m]
    probabilities: Floats  # [m, C]
    truth: list[int | None]  # m classes by the answers; None: no class
    basis: str  # what a guarantee rests on, in words


def refuse_without_guarantee(
    model: FinetunedModel, max_error: float, *, is_exact: bool = True
) -> None:
    """Raise the UserError of `abstention_threshold`, if any, before anything is computed."""
    path = result_file(fusion_report.NAME, model.folder, "--abstain")
    _counted(model, path, max_error, is_exact=is_exact)


def _counted(
    model: FinetunedModel, path: Path, max_error: float, *, is_exact: bool
) -> tuple[PersonAnswers, str | None, list[str]]:
    """Return the answers, the classifier of `fuse_labels` that they check, and their images.

    UserError: there are too few, or they check other probabilities than those that are wanted.
    """
    answers = fusion_report.read_fusion_report(path).answers
    ids = answers.checking
    checks = answers.checked.classifiers if answers.checked else {}
    name = next((name for name in checks if _is_classifier(model, path.parent, name)), None)
    index, _ = tables.read_unlabelled(path.parent / "images.parquet", training=True)
    drawable = len(index) - answers.n_teaching
    if name is None:
        unseen = _unseen(model, ids, len(index), drawable)
        _require_unseen(unseen, len(ids), max_error, path.parent)
        return answers, None, unseen.images
    if not is_exact:
        raise UserError(
            f"The guarantee of {name} rests on classifiers that left answers out, in float32, "
            "and --int8 changes probabilities; leave out --int8 or --abstain, or export a trained "
            "model of the dataset."
        )
    require_answers(len(checks[name].right), drawable, max_error, path.parent)
    return answers, name, list(ids)


def _checked(
    model: FinetunedModel,
    path: Path,
    classify: Classify,
    max_error: float,
    *,
    is_exact: bool = True,
) -> CheckedPredictions:
    """Return predictions for images drawn at random, or raise UserError if they are too few."""
    answers, name, images = _counted(model, path, max_error, is_exact=is_exact)
    if name is None or answers.checked is None:
        classes = {image: answers.images[image] for image in images}
        confidence, probabilities, truth = _predicted(model, path.parent, classes, classify)
        right = [
            row.argmax() == label for row, label in zip(probabilities, truth, strict=True)
        ]
        how = "which the model was not trained on"
    else:
        check = answers.checked.classifiers[name]
        confidence = np.array(check.confidence)
        right = check.right
        probabilities = np.array(check.probabilities).reshape(len(right), -1)
        truth = _classes(model, [answers.images[image] for image in images])
        how = "each of them left out of the classifier that it checks (five folds)"
    basis = (
        f"This holds for images like the training images of {path.parent} without the "
        f"{answers.n_teaching} that were chosen to teach. It rests on {len(right)} answers about "
        f"such images drawn at random, {how}."
    )
    return CheckedPredictions(
        confidence, np.array(right, dtype=bool), probabilities, truth, basis
    )


def _classes(model: FinetunedModel, names: Sequence[str | None]) -> list[int | None]:
    number = {name: row for row, name in enumerate(model.classnames)}
    return [None if name is None else number.get(name) for name in names]


def require_answers(
    n: int, most: int, share: float, folder: Path, *, on_average: bool = False
) -> None:
    """Raise UserError if n answers about drawn images are too few for a guarantee.

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


def _is_classifier(model: FinetunedModel, folder: Path, name: str) -> bool:
    """Return whether a model's classifier is one of `fuse_labels`, which learned from answers."""
    classifier, _ = load_classifier(folder / "classifiers" / f"{name}.safetensors")
    return torch.equal(classifier.weights, model.classifier.weights)


@dataclass(frozen=True)
class Unseen:
    """The answered images that a run was not trained on, and had no answer of."""

    images: list[str]
    most: int  # how many there can be
    why: str = ""  # there can be no more
    share: float = 1.0  # the images' share of those that will be drawn


def _unseen(model: FinetunedModel, ids: Sequence[str], n: int, drawable: int) -> Unseen:
    """Find the images that a run did not learn from among the answered ones, of n in training."""
    run, _ = run_of(model.folder)
    history = run / "history.parquet"
    if not history.is_file():  # nothing was trained
        return Unseen(list(ids), drawable)
    described = tables.read_metadata(history, TrainingMetadata)
    drawn = set(described.drawn)
    if drawn or described.labels == "fused":
        most = most_drawn(n)
        why = f"answered images are left out while they are at most {most:,} of the {n:,}"
        unseen = [image for image in ids if image in drawn]
        return Unseen(unseen, most if len(ids) <= most else 0, why)
    if described.averaged is not None:  # another of its trainings learned from them
        return Unseen([], 0, "its trainings together learned from all images")
    predictions = str(run / "train_predictions.parquet")
    table = read_predictions(predictions, model.classnames, held_out=True)
    held_out = set(table["image_id"].to_pylist())
    unseen = [image for image in ids if image in held_out]
    most = len(held_out)
    return Unseen(unseen, most, "the training left out no others", most / n)


def _require_unseen(unseen: Unseen, answers: int, share: float, folder: Path) -> None:
    """Raise UserError if too few of the answers are about images that a run did not learn from."""
    needed = fewest_answers(share)
    n = len(unseen.images)
    most = unseen.most
    if n >= needed:
        return
    lack = (
        f"it takes at least {needed:,} answers about images that the model did not learn from, and "
        f"there are {n} among {answers}"
    )
    if needed <= most:
        raise UserError(
            f"A guarantee of {share:g} needs more answers: {lack}. Run latteclip teach {folder} "
            f"--budget {2 * math.ceil(needed / unseen.share)}, then the workflow again."
        )
    within = f" They allow a guarantee of {smallest_share(most):g}." if most else ""
    other = folder / "image_prototypes" / "seed0" / "model"
    promise = f", which allow {smallest_share(answers):g}" if answers else ""
    raise UserError(
        f"A guarantee of {share:g} is out of reach for this model: {lack}. There can be at most "
        f"{most:,}, because {unseen.why}.{within} {other} has the guarantee by all {answers:,} "
        f"answers{promise}."
    )


def _predicted(
    model: FinetunedModel,
    folder: Path,
    answers: Mapping[str, str | None],
    classify: Classify,
) -> tuple[Floats, Floats, list[int | None]]:
    """Return the best probabilities [m] of m images, those of all classes [m, C], and classes."""
    ids = list(answers)
    paths = tables.lookup(folder / "images.parquet", tables.IMAGES, "image_id", "path", ids)
    class_of = dict(zip(paths, answers.values(), strict=True))
    predictions = classify(paths, topk=len(model.classnames))
    probabilities = np.zeros((len(predictions), len(model.classnames)))
    for row, prediction in zip(probabilities, predictions, strict=True):
        row[prediction.topk_labels] = prediction.topk_probabilities
    truth = _classes(model, [class_of[prediction.path] for prediction in predictions])
    return (
        np.array([prediction.probability for prediction in predictions]),
        probabilities,
        truth,
    )
