"""What a training reads: N images, their labels, texts and order.

Images are decoded once, cached on disk, and augmented by the processes that load them. H x W is the
model's input size.
"""

import contextlib
import inspect
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from latteclip.clip.classifier import load_classifier
from latteclip.clip.features import classify_table
from latteclip.core import tables
from latteclip.core.class_templates import class_texts
from latteclip.core.errors import UserError
from latteclip.core.files import (
    digest,
    digest_of,
    existing,
    read_object,
    replacing,
)
from latteclip.core.holdout import NO_FOLD, Fold, left_out
from latteclip.core.tables import IndexMetadata
from latteclip.data import images as decoding
from latteclip.data.images import open_rgb
from latteclip.data.loader import Images
from latteclip.train.objectives.base import TokenizedTexts, TrainingTexts
from latteclip.train.settings import GROUND_TRUTH

# Shorter side of cached images over the model's input size: a crop differs less from one of the
# original than bilinear and bicubic resizing differ.
MARGIN = 1.5
# At which Pillow's quick resizing equals the exact one, by its documentation.
REDUCING_GAP = 3.0
FREE = 2  # times the room of all images that must be free before they are cached
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
    # Output of find_learning_rate, if finetune.lr is auto.
    learning_rate: str | None = None


@dataclass(frozen=True)
class TrainingData:
    """The N images that are not in the test split."""

    paths: tables.Strings
    checksums: pa.ChunkedArray  # of the files
    labels: torch.Tensor  # [N] class that the training takes each image for
    classnames: list[str]
    texts: TrainingTexts
    # Images that decide the number of steps: N and those left out.
    n_scheduled: int
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
            column="fused_confidence",
            ids=all_ids,
        )
        is_trained &= confidence.to_numpy() > 0
        drawn = read_object(str(files.fusion_report), ["checking"])["checking"]
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
    image_texts = group_texts = group_labels = torch.zeros(0, dtype=torch.long)
    class_ids = texts.add(descriptions)
    if files.image_captions:
        captions = tables.lookup_column(files.image_captions, "caption", image_ids)
        captions = tables.Strings(captions)
        image_texts = texts.add(_or_class(captions, pseudo_labels, descriptions))
    if files.group_captions:
        label_of = np.full(len(all_ids), LEFT_OUT)
        label_of[is_trained] = pseudo_labels
        captions, classes = _groups(files.group_captions, all_ids, label_of)
        group_texts = texts.add(_or_class(captions, classes, descriptions))
        group_labels = torch.from_numpy(classes)
    paths = tables.Strings(table["path"])
    numbers = (pseudo_labels, class_ids, image_texts, group_texts, group_labels)
    content = (np.asarray(each).tobytes() for each in numbers)
    return TrainingData(
        paths=paths,
        checksums=table["checksum"],
        labels=torch.from_numpy(pseudo_labels),
        classnames=classnames,
        texts=TrainingTexts(
            texts, class_ids, image_texts, group_texts, group_labels
        ),
        n_scheduled=len(all_ids),
        digest=digest_of(itertools.chain(paths, texts.texts, content)),
        written_names=tables.read_metadata(
            files.images, IndexMetadata
        ).written_names,
        drawn=drawn,
    )


def labels_of(
    files: TrainingFiles, kind: str, image_ids: pa.ChunkedArray
) -> np.ndarray:
    """Return the class [N] that each image is taken for."""
    if kind == "zero_shot_adapted":
        classifier, _ = load_classifier(str(files.adapted))
        best, _ = classify_table(files.pseudo_labels, image_ids, classifier, 1)
        return best[:, 0].astype(np.int64)
    path, column = {
        GROUND_TRUTH: (files.images, "label"),
        "zero_shot": (files.pseudo_labels, "pseudo_label"),
    }.get(kind, (str(files.fused_labels), f"{kind}_label"))
    labels = tables.lookup_column(path, column, image_ids)
    if labels.null_count:
        raise UserError(
            f"{path} has no {column} for {labels.null_count} of {len(labels)} training images; "
            "take another method."
        )
    return np.asarray(labels, np.int64)


def _groups(
    path: str, image_ids: pa.ChunkedArray, label_of: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Return the captions and most frequent classes of groups without images that are left out."""
    table = tables.read(path, ["members", "caption"])
    rows = tables.find_rows(pc.list_flatten(table["members"]), image_ids, path)
    labels = label_of[rows].reshape(len(table), -1)  # [G, 4]
    is_whole = (labels != LEFT_OUT).all(axis=1)
    captions = table["caption"].filter(pa.array(is_whole)).to_pylist()
    labels = labels[is_whole]
    counts = (labels[:, :, None] == labels[:, None]).sum(axis=1)  # [G, 4]
    # The first of equals.
    classes = labels[range(len(labels)), counts.argmax(axis=1)]
    # A class of images without a group gets one with an empty caption.
    lacking = np.setdiff1d(label_of, [*classes, LEFT_OUT])
    captions += [""] * len(lacking)
    return captions, np.append(classes, lacking)


def _or_class(
    captions: Iterable[str], labels: np.ndarray, descriptions: list[str]
) -> Iterator[str]:
    """Replace empty captions by the class description of their label."""
    for caption, label in zip(captions, labels.tolist(), strict=True):
        yield caption or descriptions[label]


def schedule(
    images: Sequence[int], batch_size: int, steps: int, seed: int, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of keys (number of the shuffle, image) from step `start` to step `steps`.

    They are cut from consecutive shuffles of the n images, and all have one size, n at most.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(images)
    size = min(batch_size, n)

    def stream() -> Iterator[tuple[int, int]]:
        for number in itertools.count():
            for place in torch.randperm(n, generator=generator).tolist():
                yield number, images[place]

    keys = itertools.islice(stream(), start * size, steps * size)
    while batch := list(itertools.islice(keys, size)):
        yield batch


class TrainingImages(Images):
    """Augmented images uint8 [3, H, W] by their keys (number of the pass, index) and a seed."""

    def __init__(
        self,
        paths: Sequence[str],
        checksums: pa.ChunkedArray,
        side: tuple[int, int],
        seed: int,
        folder: str | None = None,
    ) -> None:
        """Prepare N images with the checksums of their files for an input of H x W.

        Trainings with the same code that decodes share decoded images in the folder, if its disk
        has room.
        """
        self.paths = paths
        self.checksums = checksums
        self.shorter_side = round(MARGIN * max(side))
        # open_clip's random crops and colours (LatteCLIP, section 4).
        bicubic = InterpolationMode.BICUBIC
        colours = v2.ColorJitter(0.5, 0.5, 0.5, hue=0.1)
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(side, (0.9, 1.0), interpolation=bicubic),
                v2.RandomApply([colours], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.PILToTensor(),
            ]
        )
        self.seed = seed
        self.folder = None
        # If the longer side is a third longer.
        size = 4 * self.shorter_side**2 * len(paths)
        if folder:
            place = Path(folder, self._code())
            # Where the folder exists, a training that had room wrote it.
            free = shutil.disk_usage(existing(place)).free
            if place.is_dir() or FREE * size <= free:
                self.folder = place

    def __getitem__(self, key: Any) -> tuple[Any, torch.Tensor]:
        number, index = key
        [seed] = np.random.SeedSequence((self.seed, number, index)).generate_state(
            1
        )
        picture = self._read(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return key, self.augment(picture)

    def _read(self, index: int) -> Image.Image:
        """Return an image from the cache, or cache it, or raise UserError."""
        if self.folder is None:
            return self._decode(index)
        name = f"{self.checksums[index].as_py().hex()}-{self.shorter_side}.ppm"
        file = self.folder / name[:2] / name
        with contextlib.suppress(FileNotFoundError):
            return Image.open(file)
        decoded = self._decode(index)
        # The disk is full.
        with contextlib.suppress(OSError), replacing(file) as temporary:
            decoded.save(temporary, "PPM")
        return decoded

    @classmethod
    def _code(cls) -> str:
        """Return the digest of the code that decodes."""
        code = inspect.getsource(decoding) + inspect.getsource(cls._decode)
        return digest(code, str(REDUCING_GAP))[:16]

    def _decode(self, index: int) -> Image.Image:
        image = open_rgb(self.paths[index], min_side=self.shorter_side)
        scale = self.shorter_side / min(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(scale * length)) for length in image.size)
        bicubic = Image.Resampling.BICUBIC
        return image.resize((width, height), bicubic, reducing_gap=REDUCING_GAP)
