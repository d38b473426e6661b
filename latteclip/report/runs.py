"""What the pages read of the runs: splits, predictions and histories.

Letters: S seeds, N evaluated images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.settings import list_from_json
from latteclip.evaluate import gallery_images

Ints = npt.NDArray[np.int_]
Floats = npt.NDArray[np.float64]
# The columns of a training's history that are drawn.
DRAWN = (
    "loss",
    "loss_zero_shot",
    "loss_finetuned",
    "agreement",
    "class_balance",
    "weight_class",
    "weight_image",
    "weight_group",
    "prototype_drift",
)


@dataclass(frozen=True)
class RunFiles:
    """Where the results of one run are."""

    method: str
    seed: int
    metrics: str
    history: str | None = None  # of a trained method
    predictions: str | None = None
    gallery: str | None = None  # of one trained run of it: what its model says of training images


def run_files(text: str) -> list[RunFiles]:
    """The runs that a rule names, from a JSON list of objects.

    Raises:
        UserError: the text is not such a list, or the list is empty.
    """
    return list_from_json(RunFiles, text, "runs")


@dataclass(frozen=True)
class Evaluated:
    """The N evaluated images, in the order of the index: the test split, or else all images."""

    image_ids: list[str]
    paths: list[str]
    labels: Ints | None  # [N], None where any is unknown, or there is no test split
    before: Ints  # [N], the predictions of the pretrained model
    is_test_split: bool


@dataclass(frozen=True)
class TrainingSplit:
    """The training images, in the order of the index, and what zero-shot CLIP says of them."""

    image_ids: list[str]
    paths: list[str]
    labels: Ints | None  # None where any is unknown
    pseudo_labels: Ints
    confidence: Floats


def read_splits(images: str, pseudo_labels: str) -> tuple[TrainingSplit, Evaluated, list[str]]:
    """The training images of an index, those that are evaluated, and the C class names.

    Raises:
        UserError: the two tables are not of the same images.
    """
    columns = ["image_id", "path", "split", "label"]
    index, classnames = gallery_images.read_index(images, pseudo_labels, columns)
    is_test = pc.equal(index["split"], "test")
    train, test = index.filter(pc.invert(is_test)), index.filter(is_test)
    evaluated = test if len(test) else train
    return (
        TrainingSplit(
            train["image_id"].to_pylist(),
            train["path"].to_pylist(),
            _labels(train),
            train["pseudo_label"].to_numpy(),
            train["confidence"].to_numpy().astype(np.float64),
        ),
        Evaluated(
            evaluated["image_id"].to_pylist(),
            evaluated["path"].to_pylist(),
            _labels(test),
            evaluated["pseudo_label"].to_numpy(),
            len(test) > 0,
        ),
        classnames,
    )


def _labels(table: pa.Table) -> Ints | None:
    column = table["label"]
    return None if column.null_count or not len(column) else column.to_numpy()


def read_predictions(paths: Sequence[str], evaluated: Evaluated) -> tuple[Ints, Floats]:
    """Predictions of S runs [S, N], and by how much each beats the second best class [S, N].

    Raises:
        UserError: a file is not of the evaluated images.
    """
    predictions, margins = [], []
    for path in paths:
        table, _ = tables.read(path, tables.PREDICTIONS, ["image_id", "prediction", "topk_scores"])
        if table["image_id"].to_pylist() != evaluated.image_ids:
            raise UserError(
                f"{path} is not of the images of the index that are evaluated; rerun its stage."
            )
        predictions.append(table["prediction"].to_numpy())
        best = pc.list_element(table["topk_scores"], 0).to_numpy()
        second = pc.list_element(table["topk_scores"], 1).to_numpy()
        margins.append((best - second).astype(np.float64))
    return np.stack(predictions), np.stack(margins)


def read_curves(path: str, points: int) -> dict[str, Floats]:
    """A training's history as at most `points` means of neighbouring steps.

    Returns:
        `epoch`, how many epochs were done by the middle of each point, and each column of DRAWN
        that is not empty.
    """
    table, _ = tables.read(path, tables.HISTORY, ["step", "epoch", *DRAWN])
    steps = len(table)
    if steps == 0:
        return {}
    per_epoch = max(1, int(pc.sum(pc.equal(table["epoch"], table["epoch"][0])).as_py()))
    edges = np.linspace(0, steps, min(points, steps) + 1).astype(int)
    curves = {"epoch": (edges[:-1] + edges[1:]) / 2 / per_epoch}
    for name in DRAWN:
        column = table[name]
        if column.null_count == 0:
            values = column.to_numpy().astype(np.float64)
            curves[name] = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    return curves
