"""Image features as the stages stored them: N images, D embedding width."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from latteclip.clip.classifier import FeatureMemmap, parts
from latteclip.core import tables

Floats = npt.NDArray[np.float32]
ROWS = 2**14  # rows of the table that are in memory at once
SHRINKAGE = 0.4  # of a covariance towards a multiple of the identity, at least
TINY = 1e-10


def read_all_features(
    pseudo_labels_path: str, image_encoders_paths: Sequence[str], image_ids: pa.ChunkedArray
) -> FeatureMemmap:
    """Return CLIP's features of images, and beside them those of other models [N, D of all]."""
    models = [read_features(pseudo_labels_path, image_ids)]
    models += [
        read_features(path, image_ids, tables.IMAGE_FEATURES)
        for path in image_encoders_paths
    ]
    if not image_encoders_paths:
        return models[0]
    together = FeatureMemmap(len(image_ids), sum(model.shape[1] for model in models))
    for rows in parts(len(image_ids), ROWS):
        together[rows] = torch.cat([model[rows] for model in models], dim=1)
    return together


def read_features(
    path: str, image_ids: pa.ChunkedArray, schema: pa.Schema = tables.PSEUDO_LABELS
) -> FeatureMemmap:
    """Return features [N, D] of images in a table, in the order of `image_ids`."""
    table = tables.read(path, schema, ["image_id"])
    rows = tables.find_rows(image_ids, table["image_id"], path)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]  # ascending, as they come from the file
    features = FeatureMemmap(0, 0)
    start = 0
    for piece in tables.read_pieces(path, schema, ["image_features"], ROWS):
        values = tables.from_list_column(piece["image_features"])
        if not start:
            features = FeatureMemmap(len(rows), values.shape[1])
        first, last = np.searchsorted(rows, (start, start + len(values)))
        block = torch.from_numpy(values[rows[first:last] - start])
        features[torch.from_numpy(order[first:last])] = block
        start += len(values)
    return features


def whitened(features: Floats) -> Floats:
    """Return features [N, D] about their mean, whitened, of mean length 1.

    Directions of whitened features are a linear discriminant analysis whose covariance, shrunken
    towards a multiple of the identity, needs no labels.
    """
    n, width = features.shape
    centred = features - features.mean(axis=0)
    covariance = centred.T.astype(np.float64) @ centred / n
    scaled = covariance / max(np.trace(covariance) / width, TINY)
    share = max(SHRINKAGE, width / (width + n))
    values, vectors = np.linalg.eigh((1 - share) * scaled + share * np.eye(width))
    root = (vectors / np.sqrt(values)) @ vectors.T
    centred = centred @ root.astype(np.float32)
    length = float(np.linalg.norm(centred, axis=1).mean())
    return np.asarray(centred / max(length, TINY))
