"""Votes: what each labeller says of the N training images, a table CLASS_SCORES for each.

A user's file, the zero-shot scores of another CLIP model and captions become such tables here. A
captioner that scores classes writes its own. C classes, K options of an image.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import (
    ROWS,
    FeatureMemmap,
    best_classes,
    load_classifier,
    parts,
)
from latteclip.config.keys import ClipSection, Section
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.terminal import Progress
from latteclip.labels.vote_files import read_file
from latteclip.labels.vote_tables import VotesTableMetadata
from latteclip.labels.zero_shot import ZeroShotSettings, encode_zero_shot

log = logging.getLogger(__name__)
OPTIONS = 16  # classes of a caption that are written
Rows = tuple[Any, Sequence[Any], Sequence[Any]]  # image ids, options, log-probabilities


class VotesSettings(Section):
    """A labeller whose votes follow from captions, a file, or another CLIP model."""

    name: str
    kind: str
    file: str | None = None
    share: float | None = None  # of the images, about which the file has votes
    zero_shot: ZeroShotSettings | None = None  # another CLIP model that votes
    captions: ClipSection | None = None  # the CLIP model that reads them


def write_votes(
    images_path: str,
    settings: VotesSettings,
    output: str,
    *,
    captions_path: str | None = None,
    class_embeddings_path: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write the votes of a labeller for images that are not in the test split.

    An image about which the labeller is silent has no options.
    """
    index, classnames = tables.read_unlabelled(images_path, training=True)
    described = VotesTableMetadata(
        classnames, str(settings.name), str(settings.kind), str(settings.file)
    )
    rows: Iterator[Rows]
    if settings.captions is not None:
        assert captions_path is not None
        described.source = settings.captions.model
        captions, described.leaked = read_captions(captions_path, index["image_id"])
        classes, about = load_classifier(str(class_embeddings_path), classnames=classnames)
        picked = devices.pick(device, threads)
        rows = caption_votes(
            captions,
            index["image_id"],
            about["logit_scale"] * classes.weights,
            settings.captions,
            picked,
        )
    elif settings.zero_shot is not None:
        described.source = settings.zero_shot.clip.model
        rows = _zero_shot_votes(
            images_path, index, settings.zero_shot, device=device, threads=threads
        )
    else:
        rows = iter([read_file(images_path, settings.file, settings.name, settings.share)])
    n = 0
    with tables.writing(output, tables.CLASS_SCORES, described) as add:
        for ids, options, values in rows:
            n += sum(map(bool, options))
            add(_columns(ids, options, values))
    if not n:
        raise UserError(
            f"The labeller {settings.name} has no vote about any image; correct it, or remove it "
            "from labellers."
        )
    log.info("The labeller %s votes for %d of %d images.", settings.name, n, len(index))


def _columns(ids: Any, options: Sequence[Any], values: Sequence[Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {
        name: [None] * len(options) for name in tables.CLASS_SCORES.names
    }
    votes = {"options": options, "log_probabilities": values}
    return {**columns, "image_id": ids, **votes}


def _zero_shot_votes(
    images_path: str,
    index: pa.Table,
    settings: ZeroShotSettings,
    *,
    device: str,
    threads: int,
) -> Iterator[Rows]:
    """Yield the log-probabilities of the best classes of images by a CLIP model."""
    paths = index["path"].to_pylist()
    encoded = encode_zero_shot(images_path, paths, settings, device=device, threads=threads)
    for some in parts(len(paths), ROWS):
        cosines = encoded.features[some] @ encoded.embeddings.T
        scores = (encoded.scale * cosines).log_softmax(dim=1)  # [rows, C]
        classes, best = best_classes(scores, tables.TOPK)
        ids = index["image_id"].slice(some.start, len(classes))
        yield ids, classes.tolist(), best.tolist()


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


def caption_votes(
    captions: pa.ChunkedArray,
    image_ids: pa.ChunkedArray,
    classes: torch.Tensor,
    section: ClipSection,
    device: torch.device,
) -> Iterator[Rows]:
    """Yield log-probabilities of classes [C, D] by captions, which are scored like images.

    The mean over all captions is subtracted first. The tokenizer cuts long captions.
    """
    clip = clips.load(section.model, section.pretrained, device, section.precision)
    encoded = pc.dictionary_encode(captions.cast(pa.large_string())).combine_chunks()
    distinct = tables.Strings(pa.chunked_array([encoded.dictionary]))
    row_of = torch.from_numpy(pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64))
    texts = encode_captions(distinct, clip)
    counts = torch.bincount(row_of[row_of >= 0], minlength=len(texts)).double()
    mean = torch.zeros(texts.shape[1], dtype=torch.float64)
    for part in parts(len(texts), ROWS):
        mean += counts[part] @ texts[part].double() / counts.sum()
    for some in parts(len(row_of), ROWS):
        rows = row_of[some]
        has = rows >= 0
        centred = texts[rows[has]] - mean.float()
        scores = (centred @ classes.T).log_softmax(dim=1)
        best, values = best_classes(scores, OPTIONS)
        options: list[list[int]] = [[] for _ in rows]
        numbers: list[list[float]] = [[] for _ in rows]
        lists = zip(
            has.nonzero()[:, 0].tolist(), best.tolist(), values.tolist(), strict=True
        )
        for row, classes_of_row, values_of_row in lists:
            options[row] = classes_of_row
            numbers[row] = values_of_row
        yield image_ids.slice(some.start, len(rows)), options, numbers


@torch.no_grad()
def encode_captions(captions: tables.Strings, clip: clips.Clip) -> FeatureMemmap:
    """Return features [U, D] of different captions."""
    progress = Progress(len(captions), "captions")
    features = FeatureMemmap(len(captions), clip.config["embed_dim"])
    for rows in parts(len(captions), encode.BATCH):
        batch = list(captions[rows])
        features[rows] = encode.encode_texts(clip, clip.tokenizer(batch)).cpu()
        progress.add(len(batch))
    return features
