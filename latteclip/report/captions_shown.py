"""What a page shows of captions: those of its images, and how many name their class.

Tables are read in pieces, of which little is kept: there may be millions of captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latteclip.captions.text import mentions
from latteclip.core import tables
from latteclip.report.runs import PIECE, Split


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
