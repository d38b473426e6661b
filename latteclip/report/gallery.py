"""A dozen training images with all that the method knew of them, and changed test images.

Letters: N images, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.captions.pictures import grid
from latteclip.core import tables
from latteclip.data.images import open_rgb
from latteclip.report.figures import Moved
from latteclip.report.pictures import Picture, picture
from latteclip.report.runs import Evaluated, Ints, TrainingSplit

EXAMPLES = 6
# Sides in pixels and bytes before base64: at most 12 * (40 + 70) + 12 * 40 kB, 2.4 MB as text.
PICTURE, PICTURE_BYTES = 320, 40_000
GRID, GRID_BYTES = 448, 70_000


@dataclass(frozen=True)
class Captions:
    """The captions of one kind."""

    ids: list[str]
    members: list[list[str]]
    texts: list[str]
    pseudo_labels: list[int | None]
    metadata: dict[str, Any]


def read_captions(path: str) -> Captions:
    """A CAPTIONS table."""
    columns = ["id", "members", "caption", "pseudo_label"]
    table, metadata = tables.read(path, tables.CAPTIONS, columns)
    return Captions(
        ids=table["id"].to_pylist(),
        members=table["members"].to_pylist(),
        texts=table["caption"].to_pylist(),
        pseudo_labels=table["pseudo_label"].to_pylist(),
        metadata=metadata,
    )


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
    group_members: list[str]


def items(
    chosen: Sequence[int],
    train: TrainingSplit,
    tuned_labels: Sequence[int] | None,
    image_captions: Captions | None,
    group_captions: Captions | None,
) -> list[Item]:
    """The chosen images with their captions and a group of their pseudo-label."""
    paths = dict(zip(train.image_ids, train.paths, strict=True))
    texts = (
        dict(zip(image_captions.ids, image_captions.texts, strict=True)) if image_captions else {}
    )
    found = []
    for place, i in enumerate(chosen):
        number = group_of(i, train, group_captions) if group_captions else None
        members = group_captions.members[number] if group_captions and number is not None else []
        found.append(
            Item(
                image_id=train.image_ids[i],
                picture=picture(open_rgb(train.paths[i]), PICTURE, PICTURE_BYTES),
                confidence=float(train.confidence[i]),
                pseudo_label=int(train.pseudo_labels[i]),
                tuned_label=None if tuned_labels is None else int(tuned_labels[place]),
                label=None if train.labels is None else int(train.labels[i]),
                image_caption=texts.get(train.image_ids[i]),
                group=_group_picture(members, paths, group_captions) if group_captions else None,
                group_caption=group_captions.texts[number]
                if group_captions and number is not None
                else None,
                group_members=members,
            )
        )
    return found


def group_of(i: int, train: TrainingSplit, groups: Captions) -> int | None:
    """A group of the pseudo-label of image i, one that holds it if possible; None without any."""
    own = [n for n, label in enumerate(groups.pseudo_labels) if label == train.pseudo_labels[i]]
    holding = [n for n in own if train.image_ids[i] in groups.members[n]]
    return next(iter(holding or own), None)


def _group_picture(
    members: Sequence[str], paths: dict[str, str], groups: Captions
) -> Picture | None:
    """The members in a grid: what the captioner saw, or, with separate images, all of them."""
    layout = groups.metadata["groups"]
    if not members:
        return None
    square = grid([open_rgb(paths[m]) for m in members], layout["canvas"], layout["gap"])
    return picture(square, GRID, GRID_BYTES)


@dataclass(frozen=True)
class Example:
    """A test image whose prediction changed."""

    image_id: str
    picture: Picture
    label: int
    before: int
    after: int
    seeds: int


def examples(found: Sequence[Moved], test: Evaluated, labels: Ints) -> list[Example]:
    """Test images with their pictures."""
    return [
        Example(
            test.image_ids[one.index],
            picture(open_rgb(test.paths[one.index]), PICTURE, PICTURE_BYTES),
            int(labels[one.index]),
            one.before,
            one.after,
            one.seeds,
        )
        for one in found
    ]
