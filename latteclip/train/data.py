"""What fine-tuning reads: images, the labels it trusts, texts, and the order of the images.

Letters: N training images, C classes.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
import torch.nn.functional as F

from latteclip.clip.classifier import load_classifier
from latteclip.clip.feature_rows import FeatureRows
from latteclip.clip.ranking import ROWS, classify
from latteclip.core import tables
from latteclip.core.digest import digest
from latteclip.core.errors import UserError
from latteclip.core.holdout import held_out
from latteclip.core.prompts import class_texts
from latteclip.labels.features import read_features
from latteclip.train.objectives.base import TrainingTexts
from latteclip.train.settings import GROUND_TRUTH
from latteclip.train.texts import TextBank

# The column of `caption_labels.parquet` that takes the place of the zero-shot pseudo-labels.
CAPTION_LABEL_COLUMNS = {"caption": "caption_label", "lmm": "lmm_label", "fused": "fused_label"}


@dataclass(frozen=True)
class TrainingFiles:
    """The inputs; captions and their labels are None where the method does without them."""

    images: str
    pseudo_labels: str
    image_captions: str | None = None
    group_captions: str | None = None
    caption_labels: str | None = None
    calibrated: str | None = None  # zero-shot classifier without class means
    image_prototypes: str | None = None  # a classifier, where prototypes start from that


@dataclass(frozen=True)
class TrainingData:
    """The N images that are not in the test split."""

    paths: list[str]
    sizes: list[tuple[int, int]]  # width and height of each picture
    labels: torch.Tensor  # [N] class that the training takes each image for
    classnames: list[str]
    texts: TrainingTexts
    n_scheduled: int  # images that an epoch's number of steps is of: N and those held out
    digest: str  # changes when anything above changes


def read(
    files: TrainingFiles, template: str, labels: str, bank: TextBank, share: float = 0.0
) -> TrainingData:
    """Read the inputs; their texts go into `bank`.

    Args:
        labels: zero_shot, zero_shot_calibrated, caption, lmm, fused, or ground_truth, the only one
            that reads labels.
        share: of the images that are held out: neither they nor captions of groups that show one
            are trained on.

    Raises:
        UserError: an input lacks an image or a label, or there is nothing to train on.
    """
    table, classnames = tables.read_unlabelled(files.images, training=True)
    all_ids = table["image_id"].to_pylist()
    kept = ~held_out(all_ids, share)
    table = table.filter(pa.array(kept))
    image_ids = table["image_id"].to_pylist()
    if len(image_ids) < 2:
        raise UserError(
            f"{files.images} has {len(image_ids)} training images, but the loss compares images "
            "with each other; check the dataset's split."
        )
    if len(classnames) < 2:
        raise UserError(f"{files.images} names only one class; nothing can be told apart.")
    own = _labels(files, labels, image_ids)
    descriptions = class_texts(template, classnames)
    none = torch.zeros(0, dtype=torch.long)
    image_texts = group_texts = group_labels = none
    classes = bank.add(descriptions)
    if files.image_captions:
        captions = tables.lookup(files.image_captions, tables.CAPTIONS, "id", "caption", image_ids)
        image_texts = bank.add(_or_class(captions, own, descriptions))
    if files.group_captions:
        label_of = dict(zip(kept.nonzero()[0].tolist(), own, strict=True))
        captions, labels_of_groups = _groups(files.group_captions, all_ids, label_of)
        captions = _or_class(captions, labels_of_groups, descriptions)
        group_texts, group_labels = bank.add(captions), torch.tensor(labels_of_groups)
    start = _image_prototypes(files, image_ids, classnames)
    texts = TrainingTexts(classes, image_texts, group_texts, group_labels, start)
    paths = table["path"].to_pylist()
    sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    ids = [str(kind.tolist()) for kind in vars(texts).values() if kind is not None]
    content = [*paths, *map(str, own), *bank.texts, *ids]
    return TrainingData(
        paths,
        list(sizes),
        torch.tensor(own),
        classnames,
        texts,
        len(all_ids),
        digest(*content),
    )


def _labels(files: TrainingFiles, kind: str, image_ids: list[str]) -> list[int]:
    """The class that each image is taken for."""
    if kind == GROUND_TRUTH:
        labels = tables.lookup(files.images, tables.IMAGES, "image_id", "label", image_ids)
        unknown = labels.count(None)
        if unknown:
            raise UserError(
                f"{files.images} has no label for {unknown} of {len(labels)} training images; "
                "a supervised method needs them all."
            )
        return labels
    if kind == "zero_shot":
        return tables.lookup(
            files.pseudo_labels, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids
        )
    if kind == "zero_shot_calibrated":
        return _calibrated(files, image_ids)
    if files.caption_labels is None:
        raise UserError(f"Pseudo-labels {kind!r} come from captions; give --caption-labels.")
    labels = tables.lookup(
        files.caption_labels,
        tables.CAPTION_LABELS,
        "image_id",
        CAPTION_LABEL_COLUMNS[kind],
        image_ids,
    )
    if None in labels:
        asked = "scores.kind set" if kind == "lmm" else "scores.kind: null"
        raise UserError(f"{files.caption_labels} has no labels of kind {kind!r}; run with {asked}.")
    return labels


def _calibrated(files: TrainingFiles, image_ids: list[str]) -> list[int]:
    """The labels of zero-shot scores without class means."""
    if files.calibrated is None:
        raise UserError(
            "Pseudo-labels 'zero_shot_calibrated' need a classifier; give --calibrated."
        )
    classifier, _ = load_classifier(files.calibrated)
    labels, _ = classify(_features(files, image_ids), classifier, 1)
    found: list[int] = labels[:, 0].tolist()
    return found


def _image_prototypes(
    files: TrainingFiles, image_ids: list[str], classnames: list[str]
) -> torch.Tensor | None:
    """Prototypes [C, D] to start from: rows of a classifier of centred features, L2-normalised.

    Cosines have no bias. Without what the rows have in common with the mean feature they need none.
    """
    if files.image_prototypes is None:
        return None
    classifier, _ = load_classifier(files.image_prototypes, classnames=classnames)
    features, mean = _features(files, image_ids), torch.zeros(classifier.weights.shape[1])
    for start in range(0, len(features), ROWS):
        mean += features[start : start + ROWS].sum(dim=0)
    mean = F.normalize(mean, dim=0)
    rows = classifier.weights
    return F.normalize(rows - (rows @ mean)[:, None] * mean, dim=1)


def _features(files: TrainingFiles, image_ids: list[str]) -> FeatureRows:
    """Features [N, D] under the pretrained model."""
    return read_features(files.pseudo_labels, pa.chunked_array([pa.array(image_ids)]))


def _groups(
    path: str, image_ids: Sequence[str], label_of: Mapping[int, int]
) -> tuple[list[str | None], list[int]]:
    """Captions of the groups, and the class of each: the most frequent one among its members.

    With zero-shot pseudo-labels that is the class which the group was drawn from. A class that has
    images but no group gets one with an empty caption.

    Args:
        image_ids: of all images that groups may show.
        label_of: the labels of those that are trained on; groups with another image are left out.
    """
    captions: list[str | None] = []
    classes: list[int] = []
    for caption, members in zip(*tables.read_groups(path, image_ids), strict=True):
        if label_of.keys() >= set(members):
            captions.append(caption)
            classes.append(Counter(label_of[row] for row in members).most_common(1)[0][0])
    lacking = sorted(set(label_of.values()) - set(classes))
    return captions + [""] * len(lacking), classes + lacking


def _or_class(
    captions: Sequence[str | None], labels: list[int], descriptions: list[str]
) -> list[str]:
    """The captions, an empty one replaced by the class description of its label."""
    return [caption or descriptions[label] for caption, label in zip(captions, labels, strict=True)]


def schedule(
    n: int, batch_size: int, steps: int, seed: int, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """The batches of so many steps, from step `start`; all of the same size.

    They are cut from one shuffle of the n images after another, so that within a batch the first
    images of the next one may follow the last of a shuffle, and at any time no image has been seen
    two times more than another. With fewer images than a batch holds, each batch is a shuffle.

    Yields:
        Keys: the number of the shuffle, and an image.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffles = (
        (number, index)
        for number in itertools.count()
        for index in torch.randperm(n, generator=generator).tolist()
    )
    size = min(batch_size, n)
    yield from itertools.islice(_batched(shuffles, size), start, steps)


def _batched(keys: Iterator[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    while True:
        yield list(itertools.islice(keys, size))
