"""The training images that a dataset's page shows, and what a model says of them.

The page runs no model: `evaluate` and `evaluate_classifier` classify these images as they do the
test split, and write the GALLERY table.

Letters: N images.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError

SHOWN = 12
GALLERY = pa.schema([("image_id", pa.string()), ("prediction", pa.int32())])


def read_index(
    images: str, pseudo_labels: str, columns: Sequence[str]
) -> tuple[pa.Table, list[str]]:
    """Some columns of an image index with `pseudo_label` and `confidence`, and the class names.

    Raises:
        UserError: the two tables are not of the same images.
    """
    index, metadata = tables.read(images, tables.IMAGES, columns)
    zero_shot, _ = tables.read(
        pseudo_labels, tables.PSEUDO_LABELS, ["image_id", "pseudo_label", "confidence"]
    )
    if not zero_shot["image_id"].equals(index["image_id"]):
        raise UserError(f"{pseudo_labels} is not of the images of {images}; rerun its stage.")
    for name in ("pseudo_label", "confidence"):
        index = index.append_column(name, zero_shot[name])
    return index, metadata["classnames"]


def read_shown(images: str, pseudo_labels: str) -> pa.Table:
    """Read `image_id` and `path` of the training images that the page shows."""
    index, _ = read_index(images, pseudo_labels, ["image_id", "path", "split"])
    train = index.filter(pc.not_equal(index["split"], "test"))
    confidence, labels = (train[name].to_numpy() for name in ("confidence", "pseudo_label"))
    return train.take(choose(confidence, labels)).select(["image_id", "path"])


def write_predictions(
    path: str,
    image_ids: pa.ChunkedArray,
    predictions: npt.NDArray[np.integer],
    classnames: Sequence[str],
) -> None:
    """Write GALLERY: the classes [N] of the images that the page shows."""
    columns = {"image_id": image_ids, "prediction": predictions.astype(np.int32)}
    tables.write(path, columns, GALLERY, {"classnames": list(classnames)})


def choose(
    confidence: npt.NDArray[np.floating], pseudo_labels: npt.NDArray[np.integer]
) -> list[int]:
    """Which training images are shown, from the surest pseudo-label [N] to the least sure."""
    return spread_over(confidence, pseudo_labels, SHOWN)


def spread_over(
    confidence: npt.NDArray[np.floating], pseudo_labels: npt.NDArray[np.integer], n: int
) -> list[int]:
    """Some images from the surest pseudo-label to the least sure, of different classes if possible.

    Args:
        confidence: [N] of the pseudo-labels.
        pseudo_labels: [N].
        n: how many, at most N.
    """
    order = np.argsort(-confidence, kind="stable")
    chosen: list[int] = []
    classes: set[int] = set()
    for part in np.array_split(order, min(n, len(order))):
        fresh = [int(i) for i in part if int(pseudo_labels[i]) not in classes]
        chosen.append(fresh[0] if fresh else int(part[0]))
        classes.add(int(pseudo_labels[chosen[-1]]))
    return chosen


def read_predictions(path: str, image_ids: Sequence[str], classnames: Sequence[str]) -> list[int]:
    """What a model says of the images that are shown, by a GALLERY table.

    Raises:
        UserError: the table is of other images, or its model knows other classes.
    """
    table, metadata = tables.read(path, GALLERY)
    if metadata["classnames"] != list(classnames):
        raise UserError(f"{path} is of other classes than the image index; rerun its stage.")
    if table["image_id"].to_pylist() != list(image_ids):
        raise UserError(f"{path} is of other images than the page shows; rerun its stage.")
    return [int(label) for label in table["prediction"].to_pylist()]
