"""Scores of a multimodal model for CLIP's best classes: N images, K options of an image."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.core import tables

ROUNDING = 1e-3  # of the log of a sum of probabilities


def read_class_scores(path: str, image_ids: pa.ChunkedArray) -> tuple[torch.Tensor, torch.Tensor]:
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
    options, scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    given = np.arange(shape[1]) < lengths[:, None]  # [N, K]
    options[given] = pc.list_flatten(classes).to_numpy()
    scores[given] = pc.list_flatten(values).to_numpy()
    return torch.from_numpy(options), torch.from_numpy(scores)


def unlikeliness(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return minus the log of the probability [N] of all options together, from scores [N, K].

    It grows as the probability of "none of these". It is NaN where an image has no scores. All are
    NaN where scores cannot tell: they were normalised, or they are no probabilities.
    """
    has_some = scores.max(axis=1) > -np.inf
    found = np.full(len(scores), np.nan)
    found[has_some] = -np.logaddexp.reduce(scores[has_some].astype(np.float64), axis=1)
    if found[has_some].min(initial=0) < -ROUNDING or found[has_some].max(initial=0) <= ROUNDING:
        found[:] = np.nan
    return found.clip(0, None).astype(np.float32)
