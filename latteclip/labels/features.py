"""Image features as the zero-shot stage stored them.

Letters: N images, D embedding width.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip.feature_memmap import FeatureMemmap, parts
from latteclip.core import tables
from latteclip.core.errors import UserError

ROWS = 2**14  # of the table in memory at once


def read_all_features(
    pseudo_labels_path: str, eyes_paths: Sequence[str], image_ids: pa.ChunkedArray
) -> FeatureMemmap:
    """Return CLIP's features of images, and beside them those of other models [N, D of all]."""
    models = [read_features(pseudo_labels_path, image_ids)]
    models += [read_features(path, image_ids, tables.IMAGE_FEATURES) for path in eyes_paths]
    if not eyes_paths:
        return models[0]
    together = FeatureMemmap(len(image_ids), sum(model.shape[1] for model in models))
    for rows in parts(len(image_ids), ROWS):
        together[rows] = torch.cat([model[rows] for model in models], dim=1)
    return together


def read_features(
    path: str, image_ids: pa.ChunkedArray, schema: pa.Schema = tables.PSEUDO_LABELS
) -> FeatureMemmap:
    """Return features [N, D] of images in a table, in the order of `image_ids`."""
    table, _ = tables.read(path, schema, ["image_id"])
    rows = pc.index_in(image_ids, table["image_id"])
    if rows.null_count:
        raise UserError(
            f"{path} lacks {rows.null_count} of {len(rows)} images; delete it and rerun its stage."
        )
    order = np.argsort(rows.to_numpy(), kind="stable")
    rows = rows.to_numpy()[order]  # ascending, as they come from the file
    features, start = FeatureMemmap(0, 0), 0
    for piece in tables.read_pieces(path, schema, ["image_features"], ROWS):
        column = piece["image_features"].combine_chunks()
        values = column.flatten().to_numpy().reshape(len(column), -1)
        if not start:
            features = FeatureMemmap(len(rows), values.shape[1])
        first, last = np.searchsorted(rows, (start, start + len(values)))
        part = torch.from_numpy(values[rows[first:last] - start])
        features[torch.from_numpy(order[first:last])] = part
        start += len(values)
    return features
