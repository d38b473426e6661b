"""Votes: what each labeller says of the N training images, a table CLASS_SCORES for each.

A user's file, the zero-shot scores of another CLIP model and captions become such tables here. A
captioner that scores classes writes its own. C classes, K options of an image.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import (
    FeatureMemmap,
    Features,
    best_classes,
    load_classifier,
    parts,
)
from latteclip.clip.feature_store import encode_once
from latteclip.clip.zero_shot import (
    ZeroShotSettings,
    load_clip,
    zero_shot_classifier,
)
from latteclip.config.keys import ClipSection, Section
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.tables import ClassesMetadata, IndexMetadata
from latteclip.core.terminal import Progress, log_work, one_line
from latteclip.core.user_tables import (
    cells_by_image,
    class_of,
    is_empty,
    list_of,
    numbers_of_classes,
    read_image_table,
    unknown_class,
)

log = logging.getLogger(__name__)
OPTIONS = 16  # likeliest classes of an image that are written
TOLERANCE = 0.01  # by which the logarithm of a probability may be above 0
# Columns of a user's file, of which it has one kind or another.
COLUMNS = (
    ("class",),
    ("options", "log_probabilities"),
    ("options", "probabilities"),
    ("probabilities",),
)
FORMS = "class; or options and probabilities, or log_probabilities; or probabilities of all classes"
# Options of images [N] and their log-probabilities, both null where the labeller is silent.
VoteColumns = tuple[Any, Any]


class VotesSettings(Section):
    """A labeller whose votes follow from captions, a file, or another CLIP model."""

    name: str
    kind: str  # by which further kinds are told apart (CONTRIBUTING.md)
    file: str | None = None
    zero_shot: ZeroShotSettings | None = None  # another CLIP model that votes
    captions: ClipSection | None = None  # the CLIP model that reads them


def write_votes(
    images_path: str,
    settings: VotesSettings,
    output: str,
    *,
    captions_path: str | None = None,
    class_embeddings_path: str | None = None,
    store: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write the votes of a labeller for images that are not in the test split.

    An image about which the labeller is silent has no options.
    """
    index, classnames = tables.read_unlabelled(images_path, training=True)
    if settings.captions is not None:
        captions = tables.lookup_column(
            str(captions_path), "caption", index["image_id"]
        )
        classes, about = load_classifier(str(class_embeddings_path))
        weights = about["logit_scale"] * classes.weights
        clip = load_clip(settings.captions, device, threads)
        options, scores = _caption_votes(captions, weights, clip)
    elif settings.zero_shot is not None:
        clip = load_clip(settings.zero_shot.clip, device, threads)
        classes, about = zero_shot_classifier(
            clip, images_path, settings.zero_shot
        )
        features, _ = encode_once(
            clip, index["path"], index["checksum"], str(store), threads
        )
        options, scores = _best(features, about["logit_scale"] * classes.weights)
    else:
        of_index = tables.read_metadata(images_path, IndexMetadata)
        options, scores = _file_votes(
            settings, index["image_id"].to_pylist(), of_index
        )
    n = len(index) - options.null_count
    if not n:
        raise UserError(
            f"The labeller {settings.name} has no vote about any image; correct it, or remove it "
            "from labellers."
        )
    columns = {
        "image_id": index["image_id"],
        "options": options,
        "log_probabilities": scores,
        "error": pa.nulls(len(index)),
    }
    tables.write(output, columns, tables.CLASS_SCORES, ClassesMetadata(classnames))
    log.info(
        "The labeller %s votes for %d of %d images.", settings.name, n, len(index)
    )


# --- CLIP and captions ---------------------------------------------------------------------------


def _best(
    features: Features, weights: torch.Tensor, mean: torch.Tensor | float = 0
) -> VoteColumns:
    """Return the best classes by features [N, D], less their mean, and by weights [C, D]."""
    options, scores = [], []
    for some in parts(len(features)):
        shares = ((features[some] - mean) @ weights.T).log_softmax(dim=1)
        classes, best = best_classes(shares, OPTIONS)
        options.append(tables.list_column(classes.int().numpy()))
        scores.append(tables.list_column(best.numpy()))
    return pa.chunked_array(options, tables.INTS), pa.chunked_array(
        scores, tables.FLOATS
    )


def _caption_votes(
    captions: pa.ChunkedArray, weights: torch.Tensor, clip: clips.Clip
) -> VoteColumns:
    """Return the best classes by captions [N], which are scored like images by weights [C, D].

    The mean over all captions is subtracted first. The tokenizer cuts long captions. Empty captions
    are no votes.
    """
    captions = pc.utf8_trim_whitespace(captions)
    captions = pc.if_else(pc.equal(captions, ""), None, captions)
    encoded = pc.dictionary_encode(captions).combine_chunks()
    texts = encode_captions(
        tables.Strings(pa.chunked_array([encoded.dictionary])), clip
    )
    counts = np.bincount(encoded.indices.drop_null(), minlength=len(texts))
    mean = torch.zeros(texts.shape[1], dtype=torch.float64)
    for part in parts(len(texts)):
        mean += (
            torch.from_numpy(counts[part] / counts.sum()) @ texts[part].double()
        )
    options, scores = _best(texts, weights, mean.float())
    return options.take(encoded.indices), scores.take(encoded.indices)


@torch.no_grad()
def encode_captions(captions: tables.Strings, clip: clips.Clip) -> FeatureMemmap:
    """Return features [U, D] of different captions."""
    progress = Progress(len(captions), "captions")
    features = FeatureMemmap(len(captions), clip.width)
    for rows in parts(len(captions), encode.BATCH):
        batch = list(captions[rows])
        features[rows] = encode.encode_texts(clip, clip.tokenizer(batch)).cpu()
        progress.add(len(batch))
    log_work(log, f"Encoded {len(captions)} captions", progress.seconds)
    return features


# --- a user's file -------------------------------------------------------------------------------


def _file_votes(
    settings: VotesSettings, ids: list[str], index: IndexMetadata
) -> VoteColumns:
    """Return the votes of a file about images. UserError names the file and the image.

    Classes are those of `numbers_of_classes`. An empty cell is no vote.
    """
    path = settings.file
    key = f"Labeller {settings.name}: the file"
    table = read_image_table(path, key)
    columns = next((some for some in COLUMNS if {*some} <= {*table.columns}), None)
    if columns is None:
        raise UserError(
            f"{key} {path} has the columns {', '.join(table.columns)}, and no votes; "
            f"beside image_id it needs {FORMS}."
        )
    numbers = numbers_of_classes(index.classnames, index.written_names)
    cells_of = cells_by_image(path, key, table, columns, ids)
    votes: list[tuple[Any, Any]] = []
    for image_id in ids:
        cells = cells_of.get(image_id, [])
        if all(map(is_empty, cells)):
            votes.append((None, None))
            continue
        row = dict(zip(columns, cells, strict=True))
        try:
            votes.append(_vote(row, numbers, len(index.classnames)))
        except (
            LookupError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise UserError(
                f"{key} {path}, image {image_id!r}: {one_line(error, 200)}; it needs {FORMS}."
            ) from None
    options, scores = zip(*votes, strict=True)
    return pa.array(options, tables.INTS), pa.array(scores, tables.FLOATS)


def _vote(
    cells: Mapping[str, Any], numbers: Mapping[Any, int], n_classes: int
) -> tuple[list[int], Any]:
    """Return the classes and log-probabilities of a row of a user's file."""
    if "class" in cells:
        return [_class(cells["class"], numbers)], [0.0]
    classes = list(range(n_classes))
    if "options" in cells:
        classes = [_class(name, numbers) for name in list_of(cells["options"])]
    *_, (name, cell) = cells.items()
    values = np.array(list_of(cell), np.float64)
    if name == "probabilities":
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(values)
    if values.shape != (len(classes),) or len({*classes}) < len(classes):
        raise ValueError(
            f"{len(values)} numbers are not one for each of {len(classes)} classes"
        )
    if not -np.inf < values.max() <= TOLERANCE:  # nor NaN
        raise ValueError(f"{name} are no numbers, or too large")
    return classes, values


def _class(name: Any, numbers: Mapping[Any, int]) -> int:
    number = class_of(name, numbers)
    if number is None:
        hint = unknown_class(name, numbers)
        raise ValueError(f"{one_line(repr(name), 60)} is no class; {hint}")
    return number
