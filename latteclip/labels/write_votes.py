"""Votes: what each labeller says of the N training images, a table CLASS_SCORES for each.

A user's file, the zero-shot scores of another CLIP model and captions become such tables here. A
captioner that scores classes writes its own. C classes, K options of an image.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
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
from latteclip.core.tables import IndexMetadata, VotesTableMetadata
from latteclip.core.terminal import Progress, one_line
from latteclip.core.user_tables import (
    by_image_id,
    class_of,
    is_empty,
    list_of,
    numbers_of_classes,
    read_table,
    rows_of,
)
from latteclip.labels.pseudo_label_images import ZeroShotSettings, encode_zero_shot

log = logging.getLogger(__name__)
OPTIONS = 16  # likeliest classes of an image that are written
TOLERANCE = 0.01  # largest error of a sum of probabilities
# Columns of a user's file, of which it has one kind or another.
COLUMNS = (
    ("class",),
    ("options", "log_probabilities"),
    ("options", "probabilities"),
    ("probabilities",),
)
FORMS = "class; or options and probabilities, or log_probabilities; or probabilities of all classes"
Vote = tuple[list[int], list[float]]  # classes, and the log-probability of each
Rows = tuple[Any, Sequence[Vote]]  # image ids, and the vote about each


class VotesSettings(Section):
    """A labeller whose votes follow from captions, a file, or another CLIP model."""

    name: str
    kind: str
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
    device: str,
    threads: int,
) -> None:
    """Write the votes of a labeller for images that are not in the test split.

    An image about which the labeller is silent has no options.
    """
    index, classnames = tables.read_unlabelled(images_path, training=True)
    metadata = VotesTableMetadata(classnames)
    rows: Iterator[Rows]
    if settings.captions is not None:
        assert captions_path is not None
        captions, metadata.leaked = read_captions(captions_path, index["image_id"])
        classes, about = load_classifier(str(class_embeddings_path), classnames=classnames)
        weights = about["logit_scale"] * classes.weights
        picked = devices.pick(device, threads)
        section = settings.captions
        rows = caption_votes(captions, index["image_id"], weights, section, picked)
    elif settings.zero_shot is not None:
        rows = _zero_shot_votes(
            images_path, index, settings.zero_shot, device=device, threads=threads
        )
    else:
        of_index = tables.read_metadata(images_path, IndexMetadata)
        rows = iter([_file_votes(settings, index["image_id"].to_pylist(), of_index)])
    n = 0
    with tables.writing(output, tables.CLASS_SCORES, metadata) as add:
        for ids, votes in rows:
            n += sum(bool(options) for options, _ in votes)
            add(
                dict.fromkeys(tables.CLASS_SCORES.names, [None] * len(votes))
                | {
                    "image_id": ids,
                    "options": [options for options, _ in votes],
                    "log_probabilities": [values for _, values in votes],
                }
            )
    if not n:
        raise UserError(
            f"The labeller {settings.name} has no vote about any image; correct it, or remove it "
            "from labellers."
        )
    log.info("The labeller %s votes for %d of %d images.", settings.name, n, len(index))


# --- another CLIP --------------------------------------------------------------------------------


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
        yield index["image_id"].slice(some.start, len(scores)), _best(scores, OPTIONS)


def _best(scores: torch.Tensor, k: int) -> list[Vote]:
    """Return the k best classes of each image by scores [n, C]."""
    classes, values = best_classes(scores, k)
    return list(zip(classes.tolist(), values.tolist(), strict=True))


# --- captions ------------------------------------------------------------------------------------


def read_captions(path: str, image_ids: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
    """Return the caption of each image, null without one, and whether prompts differ by image."""
    captions, prompts = (
        tables.lookup_column(path, column, image_ids) for column in ("caption", "prompt")
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
        found = iter(_best((centred @ classes.T).log_softmax(dim=1), OPTIONS))
        votes = [next(found) if spoke else ([], []) for spoke in has.tolist()]
        yield image_ids.slice(some.start, len(rows)), votes


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


# --- a user's file -------------------------------------------------------------------------------


def _file_votes(settings: VotesSettings, ids: list[str], index: IndexMetadata) -> Rows:
    """Return the votes of a file about images."""
    path = settings.file
    key = f"Labeller {settings.name}: the file"
    vote_of = by_image_id(read_votes_file(path, key, index), ids, path, key)
    return ids, [vote_of.get(image_id, ([], [])) for image_id in ids]


def read_votes_file(path: str | None, key: str, index: IndexMetadata) -> dict[str, Vote]:
    """Return the votes of a file by image_id, without options where a cell is empty.

    Classes are those of `numbers_of_classes`. UserError names the file and the image.
    """
    table = read_table(path, key)
    columns = next((some for some in COLUMNS if {*some} <= {*table.columns}), None)
    if columns is None:
        raise UserError(f"{key} {path} has no votes; beside image_id it needs {FORMS}.")
    numbers = numbers_of_classes(index.classnames, index.written_names)
    votes: dict[str, Vote] = {}
    for image_id, *cells in rows_of(table, path, key, ["image_id", *columns]):
        row = dict(zip(columns, cells, strict=True))
        try:
            votes[image_id] = _vote(row, numbers, len(index.classnames))
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            reason = error if isinstance(error, _NoVoteError) else f"they are no {FORMS}"
            raise UserError(
                f"{key} {path}, image {image_id!r}: {reason}; the columns {', '.join(columns)} are "
                f"{one_line(', '.join(map(str, cells)), 120)}. Correct the file."
            ) from None
    return votes


class _NoVoteError(ValueError):
    """Cells that are no vote, with the reason."""


def _vote(row: Mapping[str, Any], numbers: Mapping[Any, int], n_classes: int) -> Vote:
    """Return the vote of a row of a user's file, without classes of probability 0."""
    if all(map(is_empty, row.values())):
        return [], []
    if "class" in row:
        return [_class(row["class"], numbers)], [0.0]
    classes = list(range(n_classes))
    if "options" in row:
        classes = [_class(name, numbers) for name in list_of(row["options"])]
    are_logs = "log_probabilities" in row
    cell = row["log_probabilities" if are_logs else "probabilities"]
    values = [float(value) for value in list_of(cell)]
    if len(values) != len(classes):
        raise _NoVoteError(f"there are {len(classes)} classes and {len(values)} numbers")
    if len({*classes}) < len(classes):
        raise _NoVoteError("a class is there twice")
    if are_logs:
        # NaN is not below any number.
        are_numbers = all(value <= TOLERANCE for value in values)
        if not are_numbers or max(values, default=-math.inf) == -math.inf:
            raise _NoVoteError("log_probabilities are above 0, no numbers, or all -inf")
        return classes, values
    if not all(value >= 0 for value in values):
        raise _NoVoteError("a probability is negative or no number")
    if abs(sum(values) - 1) > TOLERANCE:
        raise _NoVoteError(f"probabilities sum to {sum(values):.3g}, not to 1")
    likely = [pair for pair in zip(classes, values, strict=True) if pair[1] > 0]
    return [label for label, _ in likely], [math.log(value) for _, value in likely]


def _class(name: Any, numbers: Mapping[Any, int]) -> int:
    number = class_of(name, numbers)
    if number is None:
        hint = "; write names of classes as text" if isinstance(name, int) else ""
        raise _NoVoteError(f"{one_line(repr(name), 60)} is no class of this dataset{hint}")
    return number
