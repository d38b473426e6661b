"""The probability from which a classifier's predictions come with a guarantee.

It follows from a person's answers about training images that were drawn at random
(`latteclip teach`) and that the classifier did not learn from.

Letters: m answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.clip.finetuned import MODEL, FinetunedModel
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate.results import read_selection
from latteclip.evaluate.train_predictions import TRAIN_PREDICTIONS
from latteclip.labels.guarantees import Bools, Floats, fewest_answers, pac_threshold

LABELS = Path("fused_labels.parquet")


Classify = Callable[[Sequence[str]], Sequence[Any]]  # image files to their `Prediction`s


@dataclass(frozen=True)
class Abstention:
    """The probability below which a prediction is abstained from, and what that guarantees."""

    threshold: float
    guarantee: str


def learn_abstention(model: FinetunedModel, classify: Classify, max_error: float) -> Abstention:
    """Return the probability that a prediction needs for the guarantee.

    With 95 % probability, at most `max_error` of all predictions are wrong and not abstained from.

    Args:
        model: in a dataset's results.
        classify: returns the model's predictions for image files.
        max_error: share of all predictions.

    Raises:
        UserError: the model lies outside a dataset's results, or there are too few answers.
    """
    folder = results_with(LABELS, model.folder, "--abstain")
    answers = tables.read_metadata(folder / LABELS, "image_id").get("answers", {"images": {}})
    checked = answers.get("checked", {"image_id": [], "classifiers": {}})
    ids, heads = checked["image_id"], checked["classifiers"]
    name = next((name for name in heads if _is_classifier(model, folder, name)), None)
    if name is None:
        unseen = _unseen(model.folder, ids)
        confidence, right = _predicted(folder, unseen, answers, model.classnames, classify)
        how = "which the model was not trained on"
    else:
        confidence, right = (np.array(heads[name][key]) for key in ("confidence", "right"))
        how = "each of them left out of the classifier that it checks (five folds)"
    require_answers(len(right), fewest_answers(max_error), max_error, folder, of=len(ids))
    threshold = pac_threshold(confidence, ~right.astype(bool), max_error)
    n_taught = len(answers["images"]) - len(ids)
    return Abstention(
        threshold,
        f"Predictions with a probability below {threshold:.4f} are abstained from: with 95 % "
        f"probability, at most {100 * max_error:g} % of all predictions are wrong and not "
        f"abstained from. This holds for images like the training images of {folder} without the "
        f"{n_taught} that were chosen to teach. It rests on {len(right)} answers about such images "
        f"drawn at random, {how}.",
    )


def require_answers(n: int, needed: int, share: float, folder: Path, of: int | None = None) -> None:
    """Raise UserError if n answers are too few for a guarantee of a share of errors.

    Args:
        n: answers about images that were drawn at random.
        needed: answers.
        share: of errors.
        folder: results/<dataset>.
        of: how many answers there are in all, where some of them do not count for a model.
    """
    if n < needed:
        which = "that the model did not learn from" if of else "that were drawn at random"
        raise UserError(
            f"A guarantee of {share:g} takes at least {needed} answers about images {which}, and "
            f"there are {n}{f' among {of}' if of and n < of else ''}: latteclip teach {folder} "
            f"--budget {2 * needed}, then run the workflow again."
        )


def results_with(file: Path, model: Path, option: str) -> Path:
    """Return the folder results/<dataset> that a model lies in, which has a file.

    Raises:
        UserError: there is none.
    """
    places = model.absolute().parents[:3]  # of results/<dataset>/<method>/seed<n>/model
    for place in places:
        if (place / file).is_file():
            return place
    raise UserError(
        f"{model} is not in the results of a dataset with {file}, which {option} reads; run the "
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
    answers: dict[str, Any],
    classnames: Sequence[str],
    classify: Classify,
) -> tuple[Floats, Bools]:
    """Return the probabilities [m] of a model's predictions, and whether answers confirm them."""
    index = folder / "images.parquet"
    wanted = pa.chunked_array([pa.array(ids, pa.string())])
    paths = tables.lookup_column(index, tables.IMAGES, "image_id", "path", wanted).to_pylist()
    named = dict(zip(paths, (answers["images"][image] for image in ids), strict=True))
    predictions = classify(paths)
    right = [classnames[one.topk_labels[0]] == named[one.path] for one in predictions]
    return np.array([one.probability for one in predictions]), np.array(right, dtype=bool)
