"""Predictions for training images that a model did not learn from, by which models compare."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.tables import ClassesMetadata

MISSING = -1


def write_predictions(
    path: str,
    image_ids: pa.ChunkedArray,
    classes: npt.NDArray[np.integer],
    classnames: Sequence[str],
) -> None:
    """Write TRAIN_PREDICTIONS from image ids and the classes [N] of the images."""
    columns = {"image_id": image_ids, "prediction": classes.astype(np.int32)}
    tables.write(path, columns, tables.TRAIN_PREDICTIONS, ClassesMetadata(list(classnames)))


def read_predictions(path: str, classnames: Sequence[str]) -> pa.Table:
    """Read TRAIN_PREDICTIONS, or raise UserError if they have other classes."""
    table = tables.read(path, tables.TRAIN_PREDICTIONS)
    if tables.read_metadata(path, ClassesMetadata).classnames != list(classnames):
        raise UserError(f"{path} has other classes than the image index; rerun its stage.")
    return table


def held_out_predictions(
    path: str, image_ids: pa.ChunkedArray, classnames: Sequence[str]
) -> npt.NDArray[np.int_]:
    """Return the classes [N] of images, MISSING where the model learned from the image."""
    return classes_of(read_predictions(path, classnames), image_ids)


def classes_of(table: pa.Table, image_ids: pa.ChunkedArray) -> npt.NDArray[np.int_]:
    """Return the predictions [N] of images by a table, MISSING where it has none."""
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
