"""Find the run of a model in the results of its dataset, and the guarantee of its predictions.

The guarantee follows from a person's answers about training images that were drawn at random
(`latteclip teach`) and that the classifier did not learn from.
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
from latteclip.evaluate.results import read_selection
from latteclip.evaluate.train_predictions import read_predictions
from latteclip.labels.guarantees import Bools, Floats, fewest_answers, pac_threshold

log = logging.getLogger(__name__)
Classify = Callable[[Sequence[str]], Sequence[Any]]  # image files to a model's `Prediction`s


def result_file(name: str, model: Path, option: str) -> Path:
    """Return a file in the folder results/<dataset> of a model, or raise UserError."""
    for place in model.absolute().parents[:3]:  # of results/<dataset>/<method>/seed<n>/model
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


def abstention_threshold(model: FinetunedModel, classify: Classify, max_error: float) -> float:
    """Return the probability that a prediction needs for the guarantee, and log the guarantee.

    With 95 % probability, at most the share `max_error` of all predictions is wrong and not
    abstained from. Raises UserError outside of a dataset's results, and for too few answers.
    """
    path = result_file("fused_labels.parquet", model.folder, "--abstain")
    answers = tables.read_metadata(path, "image_id").get("answers", {})
    named, checked = answers.get("images", {}), answers.get("checked", {})
    ids, heads = checked.get("image_id", []), checked.get("classifiers", {})
    name = next((name for name in heads if _is_classifier(model, path.parent, name)), None)
    if name is None:
        unseen = {image: named[image] for image in _unseen(model, ids)}
        confidence, right = _predicted(model, path.parent, unseen, classify)
        how = "which the model was not trained on"
    else:
        confidence, right = (np.array(heads[name][key]) for key in ("confidence", "right"))
        how = "each of them left out of the classifier that it checks (five folds)"
    require_answers(len(right), fewest_answers(max_error), max_error, path.parent, of=len(ids))
    threshold = pac_threshold(confidence, ~right.astype(bool), max_error)
    log.info(
        "Predictions with a probability below %.4f are abstained from: with 95 %% probability, at "
        "most %g %% of all predictions are wrong and not abstained from. This holds for images "
        "like the training images of %s without the %d that were chosen to teach. It rests on %d "
        "answers about such images drawn at random, %s.",
        *(threshold, 100 * max_error, path.parent, len(named) - len(ids), len(right), how),
    )
    return threshold


def require_answers(n: int, needed: int, share: float, folder: Path, of: int | None = None) -> None:
    """Raise UserError if n answers about drawn images, `of` all, are too few for a guarantee."""
    if n < needed:
        which = "that the model did not learn from" if of else "that were drawn at random"
        raise UserError(
            f"A guarantee of {share:g} takes at least {needed} answers about images {which}, and "
            f"there are {n}{f' among {of}' if of and n < of else ''}: latteclip teach {folder} "
            f"--budget {2 * needed}, then run the workflow again."
        )


def _is_classifier(model: FinetunedModel, folder: Path, name: str) -> bool:
    """Return whether a model's classifier is one of `fuse_labels`, which learned from answers."""
    classifier, _ = load_classifier(folder / "classifiers" / f"{name}.safetensors")
    return torch.equal(classifier.weights, model.classifier.weights)


def _unseen(model: FinetunedModel, ids: Sequence[str]) -> list[str]:
    """Return the images that the run of a model was not trained on, and had no answer of."""
    run, _ = run_of(model.folder)
    history = run / "history.parquet"
    if not history.is_file():  # nothing was trained
        return list(ids)
    described = tables.read_metadata(history, "step")
    unseen = set(described.get("drawn", []))
    if not unseen and "averaged" not in described:
        predictions = str(run / "train_predictions.parquet")
        held_out = read_predictions(predictions, model.classnames, held_out=True)
        unseen = set(held_out["image_id"].to_pylist())
    return [image for image in ids if image in unseen]


def _predicted(
    model: FinetunedModel, folder: Path, answers: Mapping[str, str | None], classify: Classify
) -> tuple[Floats, Bools]:
    """Return the probabilities [m] of predictions for m images, and whether answers agree."""
    ids = list(answers)
    paths = tables.lookup(folder / "images.parquet", tables.IMAGES, "image_id", "path", ids)
    class_of, predictions = dict(zip(paths, answers.values(), strict=True)), classify(paths)
    right = [model.classnames[one.topk_labels[0]] == class_of[one.path] for one in predictions]
    return np.array([one.probability for one in predictions]), np.array(right, dtype=bool)
