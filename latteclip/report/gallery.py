"""A dozen training images with all that is known of them, and changed test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latteclip.captions.pictures import grid
from latteclip.data.images import open_rgb
from latteclip.report.captions_shown import Captions, Group
from latteclip.report.figures import Moved
from latteclip.report.pictures import Picture, picture, picture_of
from latteclip.report.runs import Ints, Split

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
