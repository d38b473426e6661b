"""Votes by captions, which CLIP's text encoder compares with the classes."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip import classifier as classifiers
from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import FeatureMemmap
from latteclip.core import devices, tables
from latteclip.core.terminal import Progress
from latteclip.labels.label_sources import caption_votes, parts
from latteclip.labels.voters.base import Ballot, VotedImages, best_labels

log = logging.getLogger(__name__)


def vote(path: str, voted: VotedImages) -> Ballot:
    """Return the votes of a CAPTIONS table."""
    settings = voted.settings
    device = devices.pick(voted.device, voted.threads)
    section = settings.clip
    clip = clips.load(section.model, section.pretrained, device, section.precision)
    captions, leaked = read_captions(path, voted.image_ids)
    texts, row_of = encode_captions(captions, clip, settings.inference.batch_size)
    votes = caption_votes(texts, row_of, voted.classes, voted.scale)
    logits = (voted.scale * voted.classes).double().T  # class means are not subtracted
    labels, confidence = best_labels(
        (texts[rows].double() @ logits).softmax(dim=1) for rows in parts(len(texts))
    )
    confidence[-1] = 0
    return Ballot("captions", votes, labels[row_of], confidence[row_of], leaked)


def read_captions(path: str, image_ids: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
    """Return the caption of each image, null without one, and whether prompts differ by image."""
    captions, prompts = (
        tables.lookup_column(path, tables.CAPTIONS, "id", column, image_ids)
        for column in ("caption", "prompt")
    )
    leaked = pc.count_distinct(prompts, mode="all").as_py() > 1
    if leaked:
        log.warning(
            "The prompts contained the pseudo-labels, so captions may only repeat them."
        )
    captions = pc.utf8_trim_whitespace(captions)
    return pc.if_else(pc.equal(captions, ""), None, captions), leaked


@torch.no_grad()
def encode_captions(
    captions: pa.ChunkedArray, clip: clips.Clip, batch_size: int
) -> tuple[FeatureMemmap, torch.Tensor]:
    """Return features of the distinct captions [U + 1, width], and the row of each caption.

    The last row is zero, for images without a caption. The tokenizer cuts long captions.
    """
    encoded = pc.dictionary_encode(captions.cast(pa.large_string())).combine_chunks()
    distinct = tables.Strings(pa.chunked_array([encoded.dictionary]))
    row_of = pc.fill_null(encoded.indices, len(distinct)).to_numpy()
    progress = Progress(len(distinct), "captions")
    features = FeatureMemmap(len(distinct) + 1, clip.config["embed_dim"])
    for rows in classifiers.parts(len(distinct), batch_size):
        batch = list(distinct[rows])
        features[rows] = encode.encode_texts(clip, clip.tokenizer(batch)).cpu()
        progress.add(len(batch))
    return features, torch.from_numpy(row_of.astype(np.int64))
