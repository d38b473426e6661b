"""What fine-tuning reads: images, the labels it trusts, texts, and the order of the images.

Letters: N training images, C classes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from latteclip.clip.classifier import ROWS, classify, load_classifier
from latteclip.clip.feature_memmap import FeatureRows, parts
from latteclip.core import tables
from latteclip.core.class_templates import class_texts
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest_of
from latteclip.core.holdout import NO_FOLD, Fold, left_out
from latteclip.labels.features import read_features
from latteclip.train.objectives.base import TextBank, TrainingTexts
from latteclip.train.settings import GROUND_TRUTH

# The column of `fused_labels.parquet` that takes the place of the zero-shot pseudo-labels.
CAPTION_LABEL_COLUMNS = {"caption": "caption_label", "lmm": "lmm_label", "fused": "fused_label"}
NOT_TRAINED = -1  # in place of the label of an image that is left out


@dataclass(frozen=True)
class TrainingFiles:
    """The inputs; captions and their labels are None where the method does without them."""

    images: str
    pseudo_labels: str
    image_captions: str | None = None
    group_captions: str | None = None
    fused_labels: str | None = None
    calibrated: str | None = None  # zero-shot classifier without class means
    image_prototypes: str | None = None  # a classifier, where prototypes start from that
    learning_rate: str | None = None  # what find_learning_rate wrote, where finetune.lr is auto


@dataclass(frozen=True)
class TrainingData:
    """The N images that are not in the test split."""

    paths: tables.Strings
    sizes: npt.NDArray[np.int32]  # [N, 2] width and height of each picture
    labels: torch.Tensor  # [N] class that the training takes each image for
    classnames: list[str]
    texts: TrainingTexts
    n_scheduled: int  # images that an epoch's number of steps is of: N and those left out
    digest: str  # changes when anything above changes
    written_names: dict[str, str]  # of classes, see `ClassTemplates`


def read(
    files: TrainingFiles, template: str, labels: str, bank: TextBank, fold: Fold = NO_FOLD
) -> TrainingData:
    """Read the inputs; their texts go into `bank`.

    Args:
        labels: zero_shot, zero_shot_calibrated, caption, lmm, fused, or ground_truth, the only one
            that reads labels.
        fold: the images that are left out: neither they nor captions of groups that show one are
            trained on.

    Raises:
        UserError: an input lacks an image or a label, or there is nothing to train on.
    """
    table, classnames = tables.read_unlabelled(files.images, training=True)
    all_ids = table["image_id"]
    kept = ~left_out(tables.Strings(all_ids), fold)
    table = table.filter(pa.array(kept))
    image_ids = table["image_id"]
    if len(image_ids) < 2:
        raise UserError(
            f"{files.images} has {len(image_ids)} training images, but the loss compares images "
            "with each other; check the dataset's split."
        )
    if len(classnames) < 2:
        raise UserError(f"{files.images} names only one class; nothing can be told apart.")
    own = _labels(files, labels, image_ids)
    descriptions = class_texts(template, classnames)
    image_texts = group_texts = group_labels = torch.zeros(0, dtype=torch.long)
    classes = bank.add(descriptions)
    if files.image_captions:
        image_texts = bank.add(_image_captions(files.image_captions, image_ids, own, descriptions))
    if files.group_captions:
        label_of = np.full(len(all_ids), NOT_TRAINED)
        label_of[kept] = own
        captions, classes_of = _group_captions(
            files.group_captions, all_ids, label_of, descriptions
        )
        group_texts, group_labels = bank.add(captions), torch.from_numpy(classes_of)
        del captions
    start = _image_prototypes(files, image_ids, classnames)
    texts = TrainingTexts(classes, image_texts, group_texts, group_labels, start)
    pa.default_memory_pool().release_unused()  # Arrow keeps what it freed, here some GiB
    paths = tables.Strings(table["path"])
    ids = (str(kind.tolist()) for kind in vars(texts).values() if kind is not None)
    content = itertools.chain(paths, map(str, own.tolist()), bank.texts, ids)
    return TrainingData(
        paths,
        np.stack([table[name].to_numpy() for name in ("width", "height")], axis=1),
        torch.from_numpy(own),
        classnames,
        texts,
        len(all_ids),
        digest_of(content),
        tables.read_written_names(files.images),
    )


def _labels(files: TrainingFiles, kind: str, image_ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The class [N] that each image is taken for."""
    if kind == "zero_shot_calibrated":
        return _calibrated(files, image_ids)
    labels = _label_column(files, kind, image_ids)
    if kind == GROUND_TRUTH and labels.null_count:
        raise UserError(
            f"{files.images} has no label for {labels.null_count} of {len(labels)} training "
            "images; a supervised method needs them all."
        )
    if labels.null_count:
        asked = "scores.kind set" if kind == "lmm" else "scores.kind: null"
        raise UserError(f"{files.fused_labels} has no labels of kind {kind!r}; run with {asked}.")
    known: npt.NDArray[np.int64] = labels.to_numpy().astype(np.int64)
    return known


def _label_column(files: TrainingFiles, kind: str, image_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The labels [N] of one kind as the stage that made them wrote them."""
    if kind == GROUND_TRUTH:
        return tables.lookup_column(files.images, tables.IMAGES, "image_id", "label", image_ids)
    if kind == "zero_shot":
        return tables.lookup_column(
            files.pseudo_labels, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids
        )
    if files.fused_labels is None:
        raise UserError(f"Pseudo-labels {kind!r} come from captions; give --fused-labels.")
    return tables.lookup_column(
        files.fused_labels,
        tables.FUSED_LABELS,
        "image_id",
        CAPTION_LABEL_COLUMNS[kind],
        image_ids,
    )


def _calibrated(files: TrainingFiles, image_ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The labels of zero-shot scores without class means."""
    if files.calibrated is None:
        raise UserError(
            "Pseudo-labels 'zero_shot_calibrated' need a classifier; give --calibrated."
        )
    classifier, _ = load_classifier(files.calibrated)
    labels, _ = classify(_features(files, image_ids), classifier, 1)
    found: npt.NDArray[np.int64] = labels[:, 0].numpy()
    return found


def _image_prototypes(
    files: TrainingFiles, image_ids: pa.ChunkedArray, classnames: list[str]
) -> torch.Tensor | None:
    """Prototypes [C, D] to start from: rows of a classifier of centred features, L2-normalised.

    Cosines have no bias. Without what the rows have in common with the mean feature they need none.
    """
    if files.image_prototypes is None:
        return None
    classifier, _ = load_classifier(files.image_prototypes, classnames=classnames)
    features, mean = _features(files, image_ids), torch.zeros(classifier.weights.shape[1])
    for part in parts(len(features), ROWS):
        mean += features[part].sum(dim=0)
    mean = F.normalize(mean, dim=0)
    rows = classifier.weights
    return F.normalize(rows - (rows @ mean)[:, None] * mean, dim=1)


def _features(files: TrainingFiles, image_ids: pa.ChunkedArray) -> FeatureRows:
    """Features [N, D] under the pretrained model."""
    return read_features(files.pseudo_labels, image_ids)


def _image_captions(
    path: str, image_ids: pa.ChunkedArray, labels: npt.NDArray[np.int64], descriptions: list[str]
) -> pa.ChunkedArray:
    """The caption of each image, or the description of its class."""
    captions = tables.lookup_column(path, tables.CAPTIONS, "id", "caption", image_ids)
    return _or_class(captions, labels, descriptions)


def _group_captions(
    path: str,
    image_ids: pa.ChunkedArray,
    label_of: npt.NDArray[np.int64],
    descriptions: list[str],
) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """`_captioned_classes` of a table, an empty caption replaced by the class's description."""
    captions, classes = _captioned_classes(tables.read_groups(path, image_ids), label_of)
    return _or_class(captions, classes, descriptions), classes


def _captioned_classes(
    groups: tables.Groups, label_of: npt.NDArray[np.int64]
) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """Captions of the groups, and the class of each: the most frequent one among its members.

    With zero-shot pseudo-labels that is the class which the group was drawn from. A class that has
    images but no group gets one with an empty caption.

    Args:
        groups: of images of which some may be left out; groups that show one are left out.
        label_of: of each of these images, NOT_TRAINED for the ones that are left out.
    """
    labels = label_of[groups.members]  # [M]
    # Of equally frequent ones that which comes first.
    values = label_of.max() + 1 - NOT_TRAINED
    pairs, first, counts = np.unique(
        groups.group_of * values + labels - NOT_TRAINED, return_index=True, return_counts=True
    )
    group_of, class_of = pairs // values, pairs % values + NOT_TRAINED
    best = np.lexsort((first, -counts, group_of))
    chosen, at = np.unique(group_of[best], return_index=True)
    classes = class_of[best][at]
    whole = ~np.isin(chosen, groups.group_of[labels == NOT_TRAINED])
    captions, classes = groups.captions.take(pa.array(chosen[whole])), classes[whole]
    lacking = np.setdiff1d(label_of[label_of != NOT_TRAINED], classes)
    empty = pa.array([""] * len(lacking), pa.string())
    return pa.chunked_array([*captions.chunks, empty]), np.concatenate([classes, lacking])


def _or_class(
    captions: pa.ChunkedArray, labels: npt.NDArray[np.int64], descriptions: list[str]
) -> pa.ChunkedArray:
    """The captions, an empty one replaced by the class description of its label."""
    instead = pa.array(descriptions, pa.string()).take(pa.array(labels))
    has_none = pc.fill_null(pc.equal(captions, ""), True)
    return pc.if_else(has_none, pa.chunked_array([instead]), captions)


def schedule(
    n: int, batch_size: int, steps: int, seed: int, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """The batches of so many steps, from step `start`; all of the same size.

    They are cut from one shuffle of the n images after another, so that within a batch the first
    images of the next one may follow the last of a shuffle, and at any time no image has been seen
    two times more than another. With fewer images than a batch holds, each batch is a shuffle.

    Of all images there is one array of 8 bytes each, the shuffle that is read from.

    Yields:
        Keys: the number of the shuffle, and an image.
    """
    generator = torch.Generator().manual_seed(seed)
    number, shuffle = -1, torch.empty(0)
    size = min(batch_size, n)
    for step in range(start, steps):
        keys: list[tuple[int, int]] = []
        while len(keys) < size:
            wanted, place = divmod(step * size + len(keys), n)
            while number < wanted:
                number, shuffle = number + 1, torch.randperm(n, generator=generator)
            images = shuffle[place : place + size - len(keys)].tolist()
            keys += [(number, image) for image in images]
        yield keys
