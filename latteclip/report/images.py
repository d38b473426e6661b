"""Pictures and captions that a dataset's page shows.

Letters: S seeds, N test images, P pairs.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip.captions.pictures import grid
from latteclip.captions.text import mentions
from latteclip.core import tables
from latteclip.core.errors import DELETE_AND_RERUN, UserError
from latteclip.data.images import open_rgb
from latteclip.report import comparison
from latteclip.report.comparison import Moved, Opinions
from latteclip.report.runs import PIECE, Floats, Ints, RunFiles, Split, read_labels

QUALITIES = (80, 60, 40, 20)


@dataclass(frozen=True)
class Picture:
    """A picture as an <img> wants it."""

    uri: str
    width: int
    height: int


def picture(image: Image.Image, side: int, max_bytes: int) -> Picture:
    """An RGB picture, its longer side at most `side` pixels, in at most `max_bytes` before base64.

    Quality is lowered first, then the size is halved until it fits.
    """
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    while True:
        for quality in QUALITIES:
            file = io.BytesIO()
            small.save(file, "WEBP", quality=quality, method=4)
            if file.tell() <= max_bytes or max(small.size) <= 16:
                encoded = base64.b64encode(file.getvalue()).decode()
                return Picture(f"data:image/webp;base64,{encoded}", small.width, small.height)
        small = small.resize((max(1, small.width // 2), max(1, small.height // 2)))


def picture_of(path: str, side: int, max_bytes: int) -> Picture:
    """The picture of an image file.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    return picture(open_rgb(path, max_side=side), side, max_bytes)


class Naming:
    """Counts the texts that hold the name of their class."""

    def __init__(self, classnames: Sequence[str]):
        self.texts = self.hits = 0
        self._holds = cache(lambda label: mentions([classnames[label]]))

    def add(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        """Count texts; an empty one says nothing."""
        for text, label in zip(texts, labels, strict=True):
            if text:
                self.texts += 1
                self.hits += self._holds(label)(text)

    @property
    def share(self) -> float | None:
        """In percent; None where there was no text."""
        return 100 * self.hits / self.texts if self.texts else None


@dataclass(frozen=True)
class Group:
    """A group of training images and what was said of it."""

    members: list[str]
    caption: str


@dataclass(frozen=True)
class Captions:
    """What is kept of the captions of one kind."""

    metadata: dict[str, Any]
    naming_pseudo_label: float | None  # share of the texts, in percent
    naming_label: float | None
    texts: dict[int, str] = field(default_factory=dict)  # of images that are shown, by their number
    groups: dict[int, Group] = field(default_factory=dict)


def read_image_captions(
    path: str, train: Split, chosen: Sequence[int], classnames: Sequence[str]
) -> Captions:
    """The captions of the chosen training images.

    Raises:
        UserError: the table is broken, or has an image that is not in the training split.
    """
    ids, metadata = tables.read(path, tables.CAPTIONS, ["id"])
    rows = train.rows_of(ids["id"], path)
    by_pseudo_label, by_label = Naming(classnames), Naming(classnames)
    wanted, start = set(chosen), 0
    texts: dict[int, str] = {}
    for piece in tables.read_pieces(path, tables.CAPTIONS, ["caption"], PIECE):
        captions = piece["caption"].to_pylist()
        own = rows[start : start + len(captions)]
        start += len(captions)
        by_pseudo_label.add(captions, train.pseudo_labels[own].tolist())
        if train.labels is not None:
            by_label.add(captions, train.labels[own].tolist())
        texts |= {i: text for i, text in zip(own.tolist(), captions, strict=True) if i in wanted}
    return Captions(metadata, by_pseudo_label.share, by_label.share, texts=texts)


def read_group_captions(
    path: str, train: Split, chosen: Sequence[int], classnames: Sequence[str]
) -> Captions:
    """For each chosen training image a group of its pseudo-label, if possible one that holds it.

    Raises:
        UserError: the table is broken.
    """
    metadata = tables.read_metadata(path, "id")
    naming = Naming(classnames)
    label_of = {train.image_id(i): int(train.pseudo_labels[i]) for i in chosen}
    labels = pa.array(sorted(set(label_of.values())), pa.int32())
    first: dict[int, Group] = {}
    holding: dict[str, Group] = {}
    columns = ["members", "caption", "pseudo_label"]
    for piece in tables.read_pieces(path, tables.CAPTIONS, columns, PIECE):
        known = pc.fill_null(piece["pseudo_label"], 0).to_pylist()
        naming.add(piece["caption"].to_pylist(), known)
        for row in piece.filter(pc.is_in(piece["pseudo_label"], labels)).to_pylist():
            group, label = Group(row["members"], row["caption"]), row["pseudo_label"]
            first.setdefault(label, group)
            for name in group.members:
                if label_of.get(name) == label:
                    holding.setdefault(name, group)
    own = {
        i: holding.get(train.image_id(i)) or first.get(int(train.pseudo_labels[i])) for i in chosen
    }
    groups = {i: group for i, group in own.items() if group}
    return Captions(metadata, naming.share, None, groups=groups)


EXAMPLES = 6
# Sides in pixels and bytes before base64: at most 12 * (30 + 60) + 12 * 30 kB, 1.9 MB as text.
PICTURE, PICTURE_BYTES = 320, 30_000
GRID, GRID_BYTES = 448, 60_000


@dataclass(frozen=True)
class Item:
    """A training image of the gallery; classes by their numbers."""

    image_id: str
    picture: Picture
    confidence: float
    pseudo_label: int
    tuned_label: int | None  # what the tuned model says; None without one
    label: int | None
    image_caption: str | None
    group: Picture | None
    group_caption: str | None


def items(
    chosen: Sequence[int],
    train: Split,
    tuned_labels: Sequence[int] | None,
    image_captions: Captions | None,
    group_captions: Captions | None,
) -> list[Item]:
    """The chosen images with their captions and a group of their pseudo-label."""
    found = []
    for place, i in enumerate(chosen):
        group = group_captions.groups.get(i) if group_captions else None
        found.append(
            Item(
                image_id=train.image_id(i),
                picture=picture_of(train.path(i), PICTURE, PICTURE_BYTES),
                confidence=float(train.confidence[i]),
                pseudo_label=int(train.pseudo_labels[i]),
                tuned_label=None if tuned_labels is None else int(tuned_labels[place]),
                label=None if train.labels is None else int(train.labels[i]),
                image_caption=image_captions.texts.get(i) if image_captions else None,
                group=_group_picture(group, train, group_captions.metadata)
                if group and group_captions
                else None,
                group_caption=group.caption if group else None,
            )
        )
    return found


def _group_picture(group: Group, train: Split, metadata: dict[str, Any]) -> Picture:
    """The members in a grid: what the captioner saw, or, with separate images, all of them."""
    layout = metadata["groups"]
    rows = train.rows_of(pa.array(group.members, pa.string()), "A group of captions")
    side = layout["canvas"]
    members = [open_rgb(train.path(i), max_side=side) for i in rows.tolist()]
    return picture(grid(members, side, layout["gap"]), GRID, GRID_BYTES)


@dataclass(frozen=True)
class Example:
    """A test image whose prediction changed."""

    image_id: str
    picture: Picture
    label: int
    before: int
    after: int


def examples(found: Sequence[Moved], test: Split, labels: Ints) -> list[Example]:
    """Test images with their pictures."""
    return [
        Example(
            test.image_id(one.index),
            picture_of(test.path(one.index), PICTURE, PICTURE_BYTES),
            int(labels[one.index]),
            one.before,
            one.after,
        )
        for one in found
    ]


DISPUTES, DISPUTE, DISPUTE_BYTES = 12, 240, 9_000
ENDS, END, END_BYTES = 240, 112, 3_500  # pictures in all, their side in pixels, bytes of each
OF_CLASS = 3  # at each end
UNKNOWN = 24


@dataclass(frozen=True)
class Thumbnail:
    """An image with what a method says of it; classes by their numbers."""

    image_id: str
    picture: Picture
    label: int | None  # where it is known
    prediction: int
    second: int | None  # the second best class
    score: float | None = None  # that it is of no class


def _thumbnail(
    split: Split, i: int, prediction: int, second: int | None, score: float | None = None
) -> Thumbnail:
    return Thumbnail(
        split.image_id(i),
        picture_of(split.path(i), END, END_BYTES),
        None if split.labels is None else int(split.labels[i]),
        prediction,
        second,
        score,
    )


@dataclass(frozen=True)
class Dispute:
    """An image about which methods differ."""

    image_id: str
    picture: Picture
    sides: list[tuple[int, list[str]]]  # a class, and the methods that say it


def disputes(found: Opinions, split: Split) -> list[Dispute]:
    """The images about which the methods differ most."""
    return [
        Dispute(
            split.image_id(i),
            picture_of(split.path(i), DISPUTE, DISPUTE_BYTES),
            comparison.sides(found, i),
        )
        for i in comparison.disputed(found, DISPUTES)
    ]


@dataclass(frozen=True)
class ClassImages:
    """Images that the main method gives a class."""

    label: int
    images: int
    disputed: int
    surest: list[Thumbnail]
    least: list[Thumbnail]


def of_classes(found: Opinions, split: Split) -> list[ClassImages]:
    """The surest and the least sure images of each class, as far as there is room."""

    def thumbnail(i: int) -> Thumbnail:
        return _thumbnail(split, i, int(found.after[i]), int(found.said.seconds[i]))

    return [
        ClassImages(
            one.label,
            one.images,
            one.disputed,
            [thumbnail(i) for i in one.surest],
            [thumbnail(i) for i in one.least],
        )
        for one in comparison.ends_of_classes(found, ENDS, OF_CLASS)
    ]


@dataclass(frozen=True)
class Unknown:
    """Images that are likely of no class."""

    marked: int  # that are beyond the threshold
    images: int
    scored: int  # by the captioner
    likeliest: list[Thumbnail]


def unknown(path: str, splits: Sequence[Split]) -> Unknown:
    """The images that are likeliest of no class, the likeliest first; those of the captioner lead.

    Args:
        path: an UNKNOWN table.
        splits: in one of which each image is.

    Raises:
        UserError: the table is broken, or of other images.
    """
    marked, scores = 0, [np.empty((2, 0))]
    names = ["score", "captioner_score"]
    for piece in tables.read_pieces(path, tables.UNKNOWN, [*names, "is_unknown"], PIECE):
        marked += int(pc.sum(piece["is_unknown"]).as_py() or 0)
        scores.append(np.stack([piece[name].to_numpy() for name in names]))
    by_clip, by_captioner = np.concatenate(scores, axis=1)
    best = np.lexsort((-by_clip, -by_captioner))[:UNKNOWN]  # NaN, no score, comes last
    table, _ = tables.read(path, tables.UNKNOWN, ["image_id"])
    found = _found(table["image_id"].take(best), by_clip[best], splits, path)
    return Unknown(marked, len(by_clip), int((~np.isnan(by_captioner)).sum()), found)


def _found(
    names: pa.ChunkedArray, scores: Floats, splits: Sequence[Split], path: str
) -> list[Thumbnail]:
    """Images by their names, with what zero-shot CLIP says of them."""
    places = [split.places(names) for split in splits]
    found = []
    for number, (name, score) in enumerate(zip(names.to_pylist(), scores.tolist(), strict=True)):
        holding = [
            (split, int(own[number]))
            for split, own in zip(splits, places, strict=True)
            if own[number] >= 0
        ]
        if not holding:
            raise UserError(f"{path} names {name!r}, which the index lacks; {DELETE_AND_RERUN}.")
        split, i = holding[0]
        found.append(_thumbnail(split, i, int(split.pseudo_labels[i]), None, score))
    return found


SHOWN = 6  # pairs with pictures, from the most alike to the least
SIDE, BYTES = 168, 8_000


@dataclass(frozen=True)
class Twins:
    """A pair with its pictures."""

    image_ids: tuple[str, str]
    pictures: list[Picture]  # two
    distance: float


@dataclass(frozen=True)
class WithoutLeaks:
    """The accuracy of a method in percent, and that on the test images that do not leak."""

    method: str
    acc1: float
    without: float


@dataclass(frozen=True)
class Duplicates:
    """What a page says of them."""

    training: int  # pairs within the training images
    test: int  # pairs within the test split
    between: int  # pairs of a training and a test image
    leaked: int  # test images
    accuracies: list[WithoutLeaks]  # none where no label is known, or nothing leaks or stays
    examples: list[Twins]

    @property
    def pairs(self) -> int:
        """All of them."""
        return self.training + self.test + self.between


def read_duplicates(
    path: str, train: Split, test: Split, run_files: Sequence[RunFiles]
) -> Duplicates:
    """What a DUPLICATES table says of a dataset and its runs.

    Raises:
        UserError: a file is missing or of other images.
    """
    table, _ = tables.read(path, tables.DUPLICATES)
    names = [table["image_id"], table["twin_id"]]
    in_test = np.stack([test.places(one) for one in names])  # [2, P]
    in_train = np.stack([train.places(one) for one in names])
    strange = np.argwhere((in_test < 0) & (in_train < 0))
    if len(strange):
        column, row = strange[0].tolist()
        name = names[column][row].as_py()
        raise UserError(f"{path} names {name!r}, which the index lacks; {DELETE_AND_RERUN}.")
    kinds = (in_test >= 0).sum(axis=0)  # how many of each pair are of the test split
    leaked = np.zeros(len(test), np.bool_)
    leaked[in_test[(in_test >= 0) & (kinds == 1)]] = True
    return Duplicates(
        training=int((kinds == 0).sum()),
        test=int((kinds == 2).sum()),
        between=int((kinds == 1).sum()),
        leaked=int(leaked.sum()),
        accuracies=_accuracies(test, leaked, run_files),
        examples=_examples(table, train, test, in_test, in_train),
    )


def _accuracies(
    test: Split, leaked: npt.NDArray[np.bool_], run_files: Sequence[RunFiles]
) -> list[WithoutLeaks]:
    """Of each method, the mean over its seeds; `leaked` [N]."""
    if test.labels is None or not leaked.any() or leaked.all():
        return []
    found = []
    for method in dict.fromkeys(run.method for run in run_files):
        paths = [run.predictions for run in run_files if run.method == method]
        right = np.stack([read_labels(path, test) == test.labels for path in paths])  # [S, N]
        both = (100 * float(part.mean()) for part in (right, right[:, ~leaked]))
        found.append(WithoutLeaks(method, *both))
    return found


def _examples(
    table: pa.Table, train: Split, test: Split, in_test: Ints, in_train: Ints
) -> list[Twins]:
    """Pairs from the most alike to the least, evenly spread."""
    distances = table["distance"].to_numpy()
    order = np.argsort(distances, kind="stable")
    spread = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int))
    found = []
    for i in order[spread].tolist():
        paths = [
            test.path(tested) if tested >= 0 else train.path(trained)
            for tested, trained in zip(in_test[:, i].tolist(), in_train[:, i].tolist(), strict=True)
        ]
        names = (str(table["image_id"][i]), str(table["twin_id"][i]))
        pictures = [picture_of(path, SIDE, BYTES) for path in paths]
        found.append(Twins(names, pictures, float(distances[i])))
    return found
