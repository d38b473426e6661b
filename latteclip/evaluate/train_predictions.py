"""Predictions for training images: held-out ones, to compare models, and examples for the page."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import ClassesMetadata, IndexMetadata

N_EXAMPLES = 12
MISSING = -1


def example_images(images: str, pseudo_labels: str) -> pa.Table:
    """Return `image_id` and `path` of the training images that the page shows."""
    index, _ = read_index(images, pseudo_labels, ["image_id", "path", "split"])
    train = index.filter(pc.not_equal(index["split"], "test"))
    confidence, labels = (train[name].to_numpy() for name in ("confidence", "pseudo_label"))
    return train.take(choose_examples(confidence, labels)).select(["image_id", "path"])


def read_index(
    images: str, pseudo_labels: str, columns: Sequence[str]
) -> tuple[pa.Table, list[str]]:
    """Read columns of an image index with `pseudo_label` and `confidence`, and the class names."""
    index = tables.read(images, tables.IMAGES, columns)
    for name in ("pseudo_label", "confidence"):
        values = tables.lookup_column(
            pseudo_labels,
            tables.PSEUDO_LABELS,
            key="image_id",
            column=name,
            ids=index["image_id"],
        )
        index = index.append_column(name, values)
    return index, tables.read_metadata(images, IndexMetadata).classnames


def choose_examples(
    confidence: npt.NDArray[np.floating],
    pseudo_labels: npt.NDArray[np.integer],
    n: int = N_EXAMPLES,
) -> list[int]:
    """Choose n of N images from the most to the least confident, of other classes if possible."""
    order = np.argsort(-confidence, kind="stable")
    chosen: list[int] = []
    for part in np.array_split(order, min(n, len(order))):
        new = part[~np.isin(pseudo_labels[part], pseudo_labels[chosen])]
        chosen.append(int(new[0] if len(new) else part[0]))
    return chosen


def write_predictions(
    path: str,
    held_out: tuple[pa.ChunkedArray, npt.NDArray[np.integer]],
    examples: tuple[pa.ChunkedArray, npt.NDArray[np.integer]],
    classnames: Sequence[str],
) -> None:
    """Write TRAIN_PREDICTIONS from image ids and classes, of held-out images and of examples."""
    columns = {
        "image_id": pa.concat_arrays(
            [ids.combine_chunks() for ids, _ in (held_out, examples)]
        ),
        "prediction": np.concatenate([held_out[1], examples[1]]).astype(np.int32),
        "held_out": np.repeat([True, False], [len(held_out[1]), len(examples[1])]),
    }
    tables.write(path, columns, tables.TRAIN_PREDICTIONS, ClassesMetadata(list(classnames)))


def read_predictions(path: str, classnames: Sequence[str], *, held_out: bool) -> pa.Table:
    """Read `image_id` and `prediction` of the held-out images, or of the examples."""
    table = tables.read(path, tables.TRAIN_PREDICTIONS)
    if tables.read_metadata(path, ClassesMetadata).classnames != list(classnames):
        raise UserError(f"{path} has other classes than the image index; rerun its stage.")
    wanted = table["held_out"] if held_out else pc.invert(table["held_out"])
    return table.filter(wanted).select(["image_id", "prediction"])


def held_out_predictions(
    path: str, image_ids: pa.ChunkedArray, classnames: Sequence[str]
) -> npt.NDArray[np.int_]:
    """Return the classes [N] of images, MISSING where the model learned from the image."""
    table = read_predictions(path, classnames, held_out=True)
    rows = pc.index_in(image_ids, table["image_id"])
    classes = pc.fill_null(pc.take(table["prediction"], rows), MISSING)
    return np.asarray(classes.to_numpy(), np.int_)


def pool_seeds(
    predictions: Sequence[npt.NDArray[np.int_]], methods: Sequence[str]
) -> list[npt.NDArray[np.int_]]:
    """Return predictions [N] of runs, each filled up by those of other seeds of its method.

    Seeds leave out different training images. Where an image is held out for several, the first
    other one counts.
    """
    pooled = []
    for own, method in zip(predictions, methods, strict=True):
        for others, other_method in zip(predictions, methods, strict=True):
            if other_method == method:
                own = np.where(own == MISSING, others, own)
        pooled.append(own)
    return pooled
