"""Read what labels are made of: features of N images, and votes of captions or class scores."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip import classifier as classifiers
from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import FeatureMemmap, load_classifier
from latteclip.config.sections.base import Section
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.terminal import Progress
from latteclip.labels import label_sources
from latteclip.labels.adaptation import adapt, unbiased_votes
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import CentredFeatures, ClipFeatures, Votes, parts, whiten

log = logging.getLogger(__name__)


class FusionSettings(Section):
    """The CLIP model that reads the captions, and how many it encodes at once."""

    clip: ClipSection
    inference: InferenceSection  # its `batch_size`


@dataclass(frozen=True)
class Predictors:
    """What the labels of N images are made of."""

    images: ClipFeatures
    others: list[CentredFeatures]  # of image encoders beside CLIP
    votes: Votes
    source: str  # of the votes: "caption", or "lmm" for class scores
    labels: torch.Tensor  # [N] by this source alone
    confidence: torch.Tensor  # [N] float32, 0 without a vote
    leaked: bool  # whether the captioner read the pseudo-labels
    described: dict[str, Any]  # CLIP


def read_predictors(
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    settings: FusionSettings,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    *,
    image_captions_path: str | None = None,
    class_scores_path: str | None = None,
    image_encoders_paths: Sequence[str] = (),
    device: str,
    threads: int,
) -> Predictors:
    """Read features of N images, and the votes of their class scores or else captions."""
    model, pretrained = settings.clip.model, settings.clip.pretrained
    classes, described = load_classifier(
        class_embeddings_path, classnames=classnames, model=model, pretrained=pretrained
    )
    scale, leaked = described["logit_scale"], False
    features = read_features(pseudo_labels_path, image_ids)
    images = adapt(ClipFeatures.of(features, classes.weights, scale))
    if class_scores_path is not None:
        options, scores = read_class_scores(class_scores_path, image_ids)
        source, votes = "lmm", unbiased_votes(images, options, scores)
        labels, confidence = _best(votes.probabilities(rows) for rows in parts(len(image_ids)))
    elif image_captions_path is not None:
        clip = clips.load(model, pretrained, devices.pick(device, threads), settings.clip.precision)
        captions, leaked = read_captions(image_captions_path, image_ids)
        texts, row_of = encode_captions(captions, clip, settings.inference.batch_size)
        source = "caption"
        votes = label_sources.caption_votes(texts, row_of, classes.weights, scale)
        logits = (scale * classes.weights).double().T  # class means are not subtracted
        labels, confidence = _best(
            (texts[rows].double() @ logits).softmax(dim=1) for rows in parts(len(texts))
        )
        confidence[-1] = 0
        labels, confidence = labels[row_of], confidence[row_of]
    else:
        raise UserError("Nothing votes: give --image-captions or --class-scores.")
    others = [
        whiten(read_features(one, image_ids, tables.IMAGE_FEATURES)) for one in image_encoders_paths
    ]
    return Predictors(images, others, votes, source, labels, confidence, leaked, described)


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


def _best(probabilities: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best classes by tables of probabilities, and their probabilities."""
    best = [table.max(dim=1) for table in probabilities]
    confidence, labels = (torch.cat(column) for column in zip(*best, strict=True))
    return labels, confidence.float()


def read_captions(path: str, image_ids: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
    """Return the caption of each image, null without one, and whether prompts differ by image."""
    captions, prompts = (
        tables.lookup_column(path, tables.CAPTIONS, "id", column, image_ids)
        for column in ("caption", "prompt")
    )
    leaked = pc.count_distinct(prompts, mode="all").as_py() > 1
    if leaked:
        log.warning("The prompts contained the pseudo-labels, so captions may only repeat them.")
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
