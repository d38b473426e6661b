"""The captions of images, and their features.

Letters: D embedding width, T captions, U distinct ones.
"""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip import encode, feature_memmap
from latteclip.clip import model as clips
from latteclip.clip.feature_memmap import FeatureMemmap
from latteclip.core import tables
from latteclip.core.terminal import Progress

log = logging.getLogger(__name__)


def read_captions(path: str, image_ids: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
    """Return the caption of each image, null without one, and whether prompts differ by image."""
    captions, prompts = (
        tables.lookup_column(path, tables.CAPTIONS, "id", column, image_ids)
        for column in ("caption", "prompt")
    )
    leaked = pc.count_distinct(prompts, mode="all").as_py() > 1
    if leaked:
        log.warning(
            "The prompts for the captions contained the pseudo-labels. The captions may repeat "
            "the pseudo-labels, and then correct few of them."
        )
    captions = pc.utf8_trim_whitespace(captions)
    return pc.if_else(pc.equal(captions, ""), None, captions), leaked


@torch.no_grad()
def encode_captions(
    captions: pa.ChunkedArray, clip: clips.Clip, batch_size: int
) -> tuple[FeatureMemmap, torch.Tensor]:
    """Return features [U + 1, D] of the distinct captions, and the row of each caption [T].

    The last row is zero, for images without a caption. The tokenizer cuts captions that are too
    long for the text tower.
    """
    encoded = pc.dictionary_encode(captions.cast(pa.large_string())).combine_chunks()
    distinct = tables.Strings(pa.chunked_array([encoded.dictionary]))
    row_of = pc.fill_null(encoded.indices, len(distinct)).to_numpy()
    progress = Progress(len(distinct), "captions")
    features = FeatureMemmap(len(distinct) + 1, clip.config["embed_dim"])
    for rows in feature_memmap.parts(len(distinct), batch_size):
        batch = list(distinct[rows])
        features[rows] = encode.encode_texts(clip, clip.tokenizer(batch)).cpu()
        progress.add(len(batch))
    return features, torch.from_numpy(row_of.astype(np.int64))
