"""Read options and log-probabilities of N images, K options each, from a CLASS_SCORES table."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.core import tables


def read_class_scores(
    path: str, image_ids: pa.ChunkedArray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the options of N images and their log-probabilities, from a CLASS_SCORES table.

    Both are [N, K], int64 and float32. Where an image has fewer options than K, which is at least
    1, the class is -1 and the score minus infinity. UserError names images that the table lacks.
    """
    classes, values = (
        tables.lookup_column(path, tables.CLASS_SCORES, "image_id", name, image_ids)
        for name in ("options", "log_probabilities")
    )
    lengths = pc.fill_null(pc.list_value_length(classes), 0).to_numpy()
    shape = len(lengths), max(1, lengths.max(initial=0))
    options = np.full(shape, -1, np.int64)
    scores = np.full(shape, -np.inf, np.float32)
    given = np.arange(shape[1]) < lengths[:, None]  # [N, K]
    options[given] = pc.list_flatten(classes).to_numpy()
    scores[given] = pc.list_flatten(values).to_numpy()
    return torch.from_numpy(options), torch.from_numpy(scores)
