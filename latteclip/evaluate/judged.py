"""What a classifier says of training images whose votes it was not made of, for `select_model`.

Letters: N images.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.holdout import Fold, judging, left_out

JUDGED = pa.schema([("image_id", pa.string()), ("prediction", pa.int32())])
NONE = -1  # in place of a class


def judging_images(images_path: str) -> pa.Table:
    """The rows of the images that may judge in an IMAGES table, without their labels."""
    table, _ = tables.read_unlabelled(images_path, training=True)
    return table.filter(pa.array(judging(tables.Strings(table["image_id"]))))


def left_out_images(images_path: str, fold: Fold) -> pa.Table:
    """Return the rows of an IMAGES table that a training leaves out, without their labels."""
    table, _ = tables.read_unlabelled(images_path, training=True)
    return table.filter(pa.array(left_out(tables.Strings(table["image_id"]), fold)))


def write_predictions(
    path: str,
    image_ids: pa.ChunkedArray,
    predictions: npt.NDArray[np.integer],
    classnames: Sequence[str],
) -> None:
    """Write JUDGED: the classes [N] of images."""
    columns = {"image_id": image_ids, "prediction": predictions.astype(np.int32)}
    tables.write(path, columns, JUDGED, {"classnames": list(classnames)})


def read_predictions(
    path: str, image_ids: pa.ChunkedArray, classnames: Sequence[str]
) -> npt.NDArray[np.int_]:
    """The classes [N] of images; NONE where the table lacks the image.

    Raises:
        UserError: the table is missing, or of other classes.
    """
    table, described = tables.read(path, JUDGED)
    if described["classnames"] != list(classnames):
        raise UserError(f"{path} is of other classes than the votes; rerun its stage.")
    rows = pc.index_in(image_ids, table["image_id"])
    found: npt.NDArray[np.int_] = (
        pc.fill_null(pc.take(table["prediction"], rows), NONE).to_numpy().astype(np.int_)
    )
    return found
