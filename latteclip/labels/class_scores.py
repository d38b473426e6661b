"""What a multimodal model says of CLIP's best classes, for those who weigh it.

Letters: N images, C classes, K options of an image.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError

ROUNDING = 1e-3  # of the log of a sum of probabilities


def read_class_scores(
    path: str, image_ids: pa.ChunkedArray, n_classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Log-probabilities of the options of images, from a CLASS_SCORES table.

    They are what the model said: biases of classes are in them.

    Args:
        path: the table; it may hold further images.
        image_ids: of the N images.
        n_classes: C.

    Returns:
        Options [N, K], classes, and their scores [N, K], finite or minus infinity. Where an image
        has fewer options than K, which is at least 1, the class is -1 and the score minus infinity.

    Raises:
        UserError: the table lacks an image, or a row of it cannot be.
    """
    table, _ = tables.read(path, tables.CLASS_SCORES, ["image_id", "options", "log_probabilities"])
    rows = pc.index_in(image_ids, table["image_id"])
    if rows.null_count:
        raise UserError(
            f"{path} lacks {rows.null_count} of {len(rows)} images; delete it and rerun its stage."
        )
    table = table.take(rows).combine_chunks()
    classes, lengths = _flat(table["options"])
    values, n_values = _flat(table["log_probabilities"])
    images = np.repeat(np.arange(len(table)), lengths)
    pairs = images.astype(np.int64) * n_classes + classes
    is_right = (
        np.array_equal(lengths, n_values)
        and bool(np.all((classes >= 0) & (classes < n_classes)))
        and len(np.unique(pairs)) == len(pairs)
        and bool(np.all(np.isfinite(values) | (values == -np.inf)))
    )
    if not is_right:
        raise UserError(
            f"{path} has options that are no classes, or twice the same, or scores that are not "
            "log-probabilities; delete it and rerun its stage."
        )
    width = max(1, int(lengths.max(initial=0)))
    options = np.full((len(table), width), -1, np.int64)
    scores = np.full((len(table), width), -np.inf, np.float32)
    given = np.arange(width) < lengths[:, None]  # [N, K]
    options[given], scores[given] = classes, values
    return options, scores


def unlikeliness(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How little the model thinks that images show any of their options.

    Minus the log of the probability that it answers with one of them; with "none of these" to
    choose as well, that grows as the probability of that.

    Args:
        scores: [N, K] of `read_class_scores`.

    Returns:
        [N], at least 0; NaN where an image has no scores. All are NaN where scores cannot tell:
        somebody has made them sum to one, or they are no probabilities.
    """
    has_some = scores.max(axis=1) > -np.inf
    found = np.full(len(scores), np.nan)
    found[has_some] = -np.logaddexp.reduce(scores[has_some].astype(np.float64), axis=1)
    if found[has_some].min(initial=0) < -ROUNDING or found[has_some].max(initial=0) <= ROUNDING:
        found[:] = np.nan
    return found.clip(0, None).astype(np.float32)


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """The values of all lists of a column, and how many each of them has."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return pc.list_flatten(column).to_numpy(), lengths
