"""Image features as the zero-shot stage stored them.

Letters: N images, D embedding width.
"""

import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip import tables
from latteclip.errors import UserError


def read_features(path: str, image_ids: pa.ChunkedArray) -> torch.Tensor:
    """Features [N, D] of images in a PSEUDO_LABELS table, in the order of `image_ids`.

    Raises:
        UserError: the table lacks one of them.
    """
    table, _ = tables.read(path, tables.PSEUDO_LABELS, ["image_id", "image_features"])
    rows = pc.index_in(image_ids, table["image_id"])
    if rows.null_count:
        raise UserError(
            f"{path} lacks {rows.null_count} of {len(rows)} images; delete it and rerun its stage."
        )
    features = table["image_features"].take(rows).combine_chunks()
    return torch.tensor(features.flatten().to_numpy()).reshape(len(features), -1)
