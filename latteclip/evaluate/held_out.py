"""What a classifier says of the training images that were held out, for `select_model`.

Letters: N images.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.holdout import held_out

HELD_OUT = pa.schema([("image_id", pa.string()), ("prediction", pa.int32())])


def read_held_out_images(images_path: str, share: float) -> pa.Table:
    """The rows of the held-out images in an IMAGES table, without their labels."""
    table, _ = tables.read_unlabelled(images_path, training=True)
    return table.filter(pa.array(held_out(table["image_id"].to_pylist(), share)))


def write_predictions(
    path: str,
    images: pa.Table,
    predictions: npt.NDArray[np.integer],
    classnames: Sequence[str],
) -> None:
    """Write HELD_OUT: the classes [N] of the held-out images."""
    columns = {"image_id": images["image_id"], "prediction": predictions.astype(np.int32)}
    tables.write(path, columns, HELD_OUT, {"classnames": list(classnames)})


def read_predictions(
    path: str, image_ids: Sequence[str], classnames: Sequence[str]
) -> npt.NDArray[np.int_]:
    """The classes [N] of some held-out images.

    Raises:
        UserError: the table is missing, lacks one of the images, or is of other classes.
    """
    if tables.read_metadata(path, "prediction")["classnames"] != list(classnames):
        raise UserError(f"{path} is of other classes than the votes; rerun its stage.")
    found = tables.lookup(path, HELD_OUT, "image_id", "prediction", image_ids)
    return np.array(found, dtype=np.int_)
