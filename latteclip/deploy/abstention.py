"""The probability from which a classifier's predictions come with a guarantee.

It follows from a person's answers about training images that were drawn at random
(`latteclip teach`) and that the classifier did not learn from.

Letters: m answers.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.clip.finetuned import FinetunedModel
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.deploy.model_origin import results_with, run_of
from latteclip.evaluate.train_predictions import TRAIN_PREDICTIONS
from latteclip.labels.guarantees import Bools, Floats, fewest_answers, pac_threshold

log = logging.getLogger(__name__)
LABELS = Path("fused_labels.parquet")


def abstention_threshold(
    model: FinetunedModel, classify: Callable[[Sequence[str]], Sequence[Any]], max_error: float
) -> float:
    """Return the probability that a prediction needs for the guarantee, and log the guarantee.

    With 95 % probability, at most the share `max_error` of all predictions is wrong and not
    abstained from. `classify` returns the model's `Prediction`s for image files. Raises UserError
    outside of a dataset's results, and for too few answers.
    """
    folder = results_with(LABELS, model.folder, "--abstain")
    named, checked = read_answers_of_labels(tables.read_metadata(folder / LABELS, "image_id"))
    ids, heads = checked.get("image_id", []), checked.get("classifiers", {})
    name = next((name for name in heads if _is_classifier(model, folder, name)), None)
    if name is None:
        unseen = _unseen(model.folder, ids)
        confidence, right = _predicted(folder, unseen, named, model.classnames, classify)
        how = "which the model was not trained on"
    else:
        confidence, right = (np.array(heads[name][key]) for key in ("confidence", "right"))
        how = "each of them left out of the classifier that it checks (five folds)"
    require_answers(len(right), fewest_answers(max_error), max_error, folder, of=len(ids))
    threshold = pac_threshold(confidence, ~right.astype(bool), max_error)
    log.info(
        "Predictions with a probability below %.4f are abstained from: with 95 %% probability, at "
        "most %g %% of all predictions are wrong and not abstained from. This holds for images "
        "like the training images of %s without the %d that were chosen to teach. It rests on %d "
        "answers about such images drawn at random, %s.",
        *(threshold, 100 * max_error, folder, len(named) - len(ids), len(right), how),
    )
    return threshold


def read_answers_of_labels(described: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the classes of answered images (None: none), and the answers that check labels."""
    answers = described.get("answers", {})
    return answers.get("images", {}), answers.get("checked", {})


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
    path = folder / "classifiers" / f"{name}.safetensors"
    weights = model.classifier.weights
    return path.is_file() and torch.equal(load_classifier(path)[0].weights, weights)


def _unseen(model: Path, ids: Sequence[str]) -> list[str]:
    """Return the images that the run of a model was not trained on, and had no answer of."""
    run, _ = run_of(model)
    history = run / "history.parquet"
    if not history.is_file():  # nothing was trained
        return list(ids)
    described = tables.read_metadata(history, "step")
    unseen = set(described.get("drawn", []))
    if not unseen and "averaged" not in described:
        table, _ = tables.read(run / "train_predictions.parquet", TRAIN_PREDICTIONS)
        unseen = set(table.filter(table["held_out"])["image_id"].to_pylist())
    return [image for image in ids if image in unseen]


def _predicted(
    folder: Path,
    ids: Sequence[str],
    named: Mapping[str, str | None],
    classnames: Sequence[str],
    classify: Callable[[Sequence[str]], Sequence[Any]],
) -> tuple[Floats, Bools]:
    """Return the probabilities [m] of a model's predictions, and whether answers confirm them."""
    paths = tables.lookup(folder / "images.parquet", tables.IMAGES, "image_id", "path", ids)
    class_of = dict(zip(paths, (named[image] for image in ids), strict=True))
    predictions = classify(paths)
    right = [classnames[one.topk_labels[0]] == class_of[one.path] for one in predictions]
    return np.array([one.probability for one in predictions]), np.array(right, dtype=bool)
