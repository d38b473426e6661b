"""Small pictures of images that people should look at: disputed, unsure, likely unknown.

However many images and classes there are, all pictures of this module take at most 1.5 MB as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import DELETE_AND_RERUN, UserError
from latteclip.report import opinions
from latteclip.report.opinions import Opinions
from latteclip.report.pictures import Picture, picture_of
from latteclip.report.runs import PIECE, Floats, Split

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
            opinions.sides(found, i),
        )
        for i in opinions.disputed(found, DISPUTES)
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
        for one in opinions.ends_of_classes(found, ENDS, OF_CLASS)
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
