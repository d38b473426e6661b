"""Image features as the stages stored them: N images, D embedding width."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from latteclip.clip.classifier import (
    ROWS,
    Classifier,
    FeatureMemmap,
    classify,
    parts,
)
from latteclip.core import tables


def read_all_features(
    pseudo_labels_path: str,
    image_encoders_paths: Sequence[str],
    image_ids: pa.ChunkedArray,
) -> FeatureMemmap:
    """Return CLIP's features of images, and beside them those of other models [N, D of all]."""
    paths = (pseudo_labels_path, *image_encoders_paths)
    models = [read_features(path, image_ids) for path in paths]
    if len(models) == 1:
        return models[0]
    together = FeatureMemmap(
        len(image_ids), sum(model.shape[1] for model in models)
    )
    for rows in parts(len(image_ids)):
        together[rows] = torch.cat([model[rows] for model in models], dim=1)
    return together


def read_features(path: str, image_ids: pa.ChunkedArray) -> FeatureMemmap:
    """Return features [N, D] of images in a table, in the order of `image_ids`."""
    table = tables.read(path, ["image_id"])
    rows = tables.find_rows(image_ids, table["image_id"], path)
    features = FeatureMemmap(0, 0)
    start = 0
    for piece in tables.read_pieces(path, ["image_features"], ROWS):
        values = tables.from_list_column(piece["image_features"])
        if not start:
            features = FeatureMemmap(len(rows), values.shape[1])
        here = (rows >= start) & (rows < start + len(values))
        block = torch.from_numpy(values[rows[here] - start])
        features[torch.from_numpy(here)] = block
        start += len(values)
    return features


def classify_table(
    path: str, image_ids: pa.ChunkedArray, classifier: Classifier, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the K best classes int32 [N, K] of images in a table, and the first one's lead [N]."""
    best, scores = classify(read_features(path, image_ids), classifier, max(k, 2))
    return best[:, :k].int().numpy(), (scores[:, 0] - scores[:, 1]).numpy()
