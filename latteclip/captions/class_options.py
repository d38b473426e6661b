"""Which classes an LMM is asked about for an image: CLIP's best ones.

Letters: N training images, C classes, D embedding width, K options.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip.classifier import ROWS, Classifier, classify
from latteclip.core import tables
from latteclip.core.errors import UserError

ALL_UP_TO = 20  # classes that are all asked about


@dataclass(frozen=True)
class ClassOptions:
    """What CLIP says of N images."""

    classes: np.ndarray  # int32 [N, K], the best first, equal ones in the order of the classes
    margins: np.ndarray  # float32 [N], cosine of the best class over that of the second

    def unsure(self, share: float) -> np.ndarray:
        """Bool [N]: the share of the images that have the smallest margins, at least one."""
        chosen = np.argsort(self.margins, kind="stable")[: math.ceil(share * len(self.margins))]
        result = np.zeros(len(self.margins), bool)
        result[chosen] = True
        return result


def n_options(topk: int, n_classes: int) -> int:
    """How many classes an image is asked about."""
    return n_classes if n_classes <= ALL_UP_TO else min(topk, n_classes)


def class_options(
    pseudo_labels_path: str, image_ids: pa.ChunkedArray, classifier: Classifier, k: int
) -> ClassOptions:
    """The k best classes of images under a classifier, by their stored features.

    Args:
        pseudo_labels_path: a PSEUDO_LABELS table.
        image_ids: of the N images.
        classifier: of C classes, C > 1.
        k: how many of them, at most C.

    Raises:
        UserError: the table lacks an image.
    """
    classes = np.empty((len(image_ids), k), np.int32)
    margins = np.empty(len(image_ids), np.float32)
    missing = np.ones(len(image_ids), bool)
    columns = ["image_id", "image_features"]
    for piece in tables.read_pieces(pseudo_labels_path, tables.PSEUDO_LABELS, columns, ROWS):
        places = pc.index_in(piece["image_id"], image_ids.combine_chunks())
        wanted = places.is_valid().to_numpy()
        rows = places.drop_null().to_numpy()
        best, scores = classify(_features(piece)[torch.from_numpy(wanted)], classifier, max(k, 2))
        classes[rows], missing[rows] = best[:, :k].numpy(), False
        margins[rows] = (scores[:, 0] - scores[:, 1]).numpy()
    if missing.any():
        raise UserError(
            f"{pseudo_labels_path} lacks {missing.sum()} of {len(missing)} images; delete it and "
            "rerun its stage."
        )
    return ClassOptions(classes, margins)


def _features(piece: pa.Table) -> torch.Tensor:
    """Features [rows, D] of a piece of the table."""
    column = piece["image_features"].combine_chunks()
    return torch.from_numpy(column.flatten().to_numpy().reshape(len(column), -1).copy())
