"""Read what a training needs: N images, their labels, texts and order."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip.classifier import classify, load_classifier
from latteclip.core import tables
from latteclip.core.class_templates import class_texts
from latteclip.core.errors import UserError
from latteclip.core.files import digest_of
from latteclip.core.holdout import NO_FOLD, Fold, left_out
from latteclip.core.tables import IndexMetadata
from latteclip.labels.features import read_features
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.train.objectives.base import TokenizedTexts, TrainingTexts
from latteclip.train.settings import GROUND_TRUTH

# Share of the training images, at most: more answers are worth more in the training.
MAX_DRAWN = 0.1
# The CHECKS of a usual `teach` may be a larger share.
MAX_OF_CHECKS = 0.2
CHECKS = 60
LEFT_OUT = -1  # in place of the label of an image that is left out


@dataclass(frozen=True)
class TrainingFiles:
    """The inputs of a training, None where a method does not need one."""

    images: str  # an IMAGES table
    pseudo_labels: str  # a PSEUDO_LABELS table
    image_captions: str | None = None  # a CAPTIONS table
    group_captions: str | None = None  # a CAPTIONS table
    fused_labels: str | None = None  # a FUSED_LABELS table
    fusion_report: str | None = None  # its report
    adapted: str | None = None  # adapted zero-shot classifier
    learning_rate: str | None = None  # output of find_learning_rate, if finetune.lr is auto


@dataclass(frozen=True)
class TrainingData:
    """The N images that are not in the test split."""

    paths: tables.Strings
    labels: torch.Tensor  # [N] class that the training takes each image for
    classnames: list[str]
    texts: TrainingTexts
    n_scheduled: int  # images that decide the number of steps: N and those left out
    digest: str  # changes when anything above changes
    written_names: dict[str, str]  # written names of classes, see `ClassTemplates`
    drawn: list[str]  # left out too: answered images that check the labels


def read(
    files: TrainingFiles,
    template: str,
    labels: str,
    texts: TokenizedTexts,
    fold: Fold = NO_FOLD,
) -> TrainingData:
    """Read the inputs, and add their texts to `texts`.

    The `labels` are zero_shot, zero_shot_adapted, those of one labeller, fused (without images that
    a person found to show no class), or ground_truth, the only kind that reads labels. The images
    of the fold are left out, and the captions of groups with any of them.
    """
    table, classnames = tables.read_unlabelled(files.images, training=True)
    all_ids = table["image_id"]
    is_trained = ~left_out(tables.Strings(all_ids), fold)
    drawn: list[str] = []
    if labels == "fused":
        confidence = tables.lookup_column(
            str(files.fused_labels),
            tables.FUSED_LABELS,
            key="image_id",
            column="fused_confidence",
            ids=all_ids,
        )
        is_trained &= confidence.to_numpy() > 0
        checked = read_fusion_report(str(files.fusion_report)).answers.checking
        drawn = checked if len(checked) <= most_drawn(len(all_ids)) else []
        is_trained &= ~pc.is_in(all_ids, pa.array(drawn, pa.string())).to_numpy()
    table = table.filter(pa.array(is_trained))
    image_ids = table["image_id"]
    if len(image_ids) < 2:
        raise UserError(
            f"{files.images} has {len(image_ids)} training images, but the loss compares images "
            "with each other; check the dataset's split."
        )
    pseudo_labels = labels_of(files, labels, image_ids)
    descriptions = class_texts(template, classnames)
    nothing = torch.zeros(0, dtype=torch.long)
    image_texts = nothing
    group_texts = nothing
    group_labels = nothing
    class_ids = texts.add(descriptions)
    if files.image_captions:
        captions = tables.lookup_column(
            files.image_captions,
            tables.CAPTIONS,
            key="id",
            column="caption",
            ids=image_ids,
        )
        image_texts = texts.add(_or_class(captions, pseudo_labels, descriptions))
    if files.group_captions:
        label_of = np.full(len(all_ids), LEFT_OUT)
        label_of[is_trained] = pseudo_labels
        captions, classes = _groups(files.group_captions, all_ids, label_of)
        group_texts = texts.add(_or_class(captions, classes, descriptions))
        group_labels = torch.from_numpy(classes)
        del captions
    pa.default_memory_pool().release_unused()  # Arrow keeps freed memory, here some GiB
    paths = tables.Strings(table["path"])
    training_texts = TrainingTexts(
        tokenized=texts,
        classes=class_ids,
        images=image_texts,
        groups=group_texts,
        group_labels=group_labels,
    )
    content = itertools.chain(
        paths,
        map(str, pseudo_labels.tolist()),
        texts.texts,
        map(str, training_texts.ids()),
    )
    return TrainingData(
        paths=paths,
        labels=torch.from_numpy(pseudo_labels),
        classnames=classnames,
        texts=training_texts,
        n_scheduled=len(all_ids),
        digest=digest_of(content),
        written_names=tables.read_metadata(files.images, IndexMetadata).written_names,
        drawn=drawn,
    )


def most_drawn(n: int) -> int:
    """Return how many answered images, of n in training, may be left out to check the model."""
    return max(int(MAX_DRAWN * n), min(CHECKS, int(MAX_OF_CHECKS * n)))


def labels_of(files: TrainingFiles, kind: str, image_ids: pa.ChunkedArray) -> np.ndarray:
    """Return the class [N] that each image is taken for."""
    if kind == "zero_shot_adapted":
        classifier, _ = load_classifier(str(files.adapted))
        best, _ = classify(read_features(files.pseudo_labels, image_ids), classifier, 1)
        return np.asarray(best[:, 0])
    path, schema, column = {
        GROUND_TRUTH: (files.images, tables.IMAGES, "label"),
        "zero_shot": (files.pseudo_labels, tables.PSEUDO_LABELS, "pseudo_label"),
    }.get(kind, (str(files.fused_labels), tables.FUSED_LABELS, f"{kind}_label"))
    labels = tables.lookup_column(path, schema, "image_id", column, image_ids)
    if labels.null_count:
        raise UserError(
            f"{path} has no {column} for {labels.null_count} of {len(labels)} training images; "
            "take another method, or change votes, the source from which labels are fused."
        )
    return np.asarray(labels, np.int64)


def _groups(
    path: str, image_ids: pa.ChunkedArray, label_of: np.ndarray
) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Return the captions and most frequent classes of groups without images that are left out."""
    table = tables.read(path, tables.CAPTIONS, ["members", "caption"])
    rows = tables.find_rows(pc.list_flatten(table["members"]), image_ids, path)
    labels = iter(label_of[rows].tolist())
    sizes = pc.list_value_length(table["members"]).to_pylist()
    class_of_group = []
    for n in sizes:
        members = Counter(itertools.islice(labels, n))
        # The first of equally frequent ones.
        [(most_frequent, _)] = members.most_common(1)
        class_of_group.append(LEFT_OUT if LEFT_OUT in members else most_frequent)
    classes = np.array(class_of_group, np.int64)
    is_whole = classes != LEFT_OUT
    # A class of images without a group gets one with an empty caption.
    lacking = np.setdiff1d(label_of[label_of != LEFT_OUT], classes)
    captions = table["caption"].filter(pa.array(is_whole))
    empty = pa.array([""] * len(lacking), pa.string())
    captions = pa.chunked_array([*captions.chunks, empty])
    return captions, np.concatenate([classes[is_whole], lacking])


def _or_class(
    captions: pa.ChunkedArray, labels: np.ndarray, descriptions: list[str]
) -> pa.ChunkedArray:
    """Replace empty captions by the class description of their label."""
    instead = pa.array(descriptions, pa.string()).take(pa.array(labels))
    is_empty = pc.fill_null(pc.equal(captions, ""), True)
    return pc.if_else(is_empty, pa.chunked_array([instead]), captions)


def schedule(
    n: int, batch_size: int, steps: int, seed: int, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of keys (number of the shuffle, image) from step `start` to step `steps`.

    They are cut from consecutive shuffles of the n images, and all have one size, n at most.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, n)

    def stream() -> Iterator[tuple[int, int]]:
        for number in itertools.count():
            for image in torch.randperm(n, generator=generator).tolist():
                yield number, image

    keys = itertools.islice(stream(), start * size, steps * size)
    while batch := list(itertools.islice(keys, size)):
        yield batch
