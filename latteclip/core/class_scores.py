"""What a multimodal model says of CLIP's best classes, for those who weigh it.

Letters: N images, C classes, K options of an image.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError


def read_class_scores(path: str, image_ids: Sequence[str], n_classes: int) -> np.ndarray:
    """Log-probabilities of the classes of images, as far as a CLASS_SCORES table has them.

    They are what the model said: biases of classes are in them.

    Args:
        path: the table; it may hold further images.
        image_ids: of the N images.
        n_classes: C.

    Returns:
        Float32 [N, C], finite or minus infinity; NaN where nothing was scored.

    Raises:
        UserError: the table lacks an image, or a row of it cannot be.
    """
    table, _ = tables.read(path, tables.CLASS_SCORES, ["image_id", "options", "log_probabilities"])
    rows = pc.index_in(pa.array(image_ids, pa.string()), table["image_id"])
    if rows.null_count:
        raise UserError(
            f"{path} lacks {rows.null_count} of {len(rows)} images; delete it and rerun its stage."
        )
    table = table.take(rows).combine_chunks()
    options, lengths = _flat(table["options"])
    values, n_values = _flat(table["log_probabilities"])
    images = np.repeat(np.arange(len(table)), lengths)
    places = images * n_classes + options
    is_right = (
        np.array_equal(lengths, n_values)
        and bool(np.all((options >= 0) & (options < n_classes)))
        and len(np.unique(places)) == len(places)
        and bool(np.all(np.isfinite(values) | (values == -np.inf)))
    )
    if not is_right:
        raise UserError(
            f"{path} has options that are no classes, or twice the same, or scores that are not "
            "log-probabilities; delete it and rerun its stage."
        )
    scores = np.full((len(table), n_classes), np.nan, np.float32)
    scores[images, options] = values
    return scores


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of all lists of a column, and how many each of them has."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return pc.list_flatten(column).to_numpy(), lengths
