"""What is asked about which images: a question for each image, or for each group of four.

Letters: N training images, R rows of a table (images or groups).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from latteclip.captions.groups import GROUP_SIZE, draw_groups
from latteclip.captions.pictures import OVERVIEW
from latteclip.captions.request import Layout
from latteclip.captions.shard import Shard
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.prompts import PLACE, fill


@dataclass(frozen=True)
class GroupSettings:
    """How groups are drawn and laid out."""

    seed: int
    canvas: int  # side of the square picture, pixels
    gap: int  # between its cells, pixels
    layout: str = "grid"  # or multi_image: the four as pictures of their own
    groups_per_class: int | None = None  # null: one for every image


@dataclass(frozen=True)
class Questions:
    """The R rows that a table will have: what is asked about which images.

    Columns, not one object per row: a million rows must fit.
    """

    ids: Sequence[str]  # R
    members: np.ndarray  # int [R, images of a request], indices into `image_ids`
    image_ids: pa.ChunkedArray  # N
    paths: pa.ChunkedArray  # N
    sizes: np.ndarray  # int [N, 2], width and height in pixels
    labels: Sequence[int] | None  # R, of groups
    prompts: Callable[[int], str]  # of a row
    layout: Layout
    others: Mapping[str, Layout] = field(default_factory=dict)  # shorter ones, by what gives them

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_images(self) -> int:
        """How many images each request shows."""
        return int(self.members.shape[1])

    def paths_of(self, row: int) -> list[str]:
        """Where the images of a row lie."""
        return [self.paths[int(i)].as_py() for i in self.members[row]]

    @property
    def n_pictures(self) -> int:
        """As how many pictures it shows them."""
        return self.n_images if self.layout.kind == "multi_image" else 1

    @property
    def most_pixels(self) -> int:
        """Of the pictures of a request, at most; at least 1."""
        layout = self.layout
        if layout.square is not None:
            each = layout.square**2
        elif layout.kind == "grid":
            each = layout.canvas**2
        else:
            sides = self.sizes.astype(np.float64)  # [N, 2]
            if layout.max_side is not None:
                sides *= np.minimum(1, layout.max_side / sides.max(axis=1, keepdims=True))
            each = math.ceil(float(sides.prod(axis=1).max(initial=1)))
        return each * self.n_pictures

    def sizes_of(self, row: int) -> list[tuple[int, int]]:
        """Width and height of the images of a row, in pixels."""
        return [(int(width), int(height)) for width, height in self.sizes[self.members[row]]]


def image_questions(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    shard: Shard,
    layout: Layout,
) -> Questions:
    """One question about each image of a shard that is not in the test split.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: needed where the prompt has a place for the pseudo-label.
        prompt: what is asked.
        shard: which images.
        layout: of an image by itself.

    Raises:
        UserError: the pseudo-labels are needed and not given, or lack an image.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    rows = [i for i, name in enumerate(image_ids) if shard.holds(name)]
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=np.array(rows, np.int64).reshape(-1, 1),
        image_ids=table["image_id"],
        paths=table["path"],
        sizes=_sizes(table),
        labels=None,
        prompts=_prompts(prompt, classnames, pseudo_labels_path, image_ids, rows),
        layout=layout,
        others=_as_overview(layout),
    )


def group_questions(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupSettings,
    shard: Shard,
    alone: Layout,
) -> Questions:
    """One question about each group of a shard; see `image_questions`."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    labels = _pseudo_labels(pseudo_labels_path, image_ids)
    # Drawn over the whole dataset in every shard, so that shards agree.
    drawn = draw_groups(image_ids, labels, groups.seed, groups.groups_per_class)
    rows = [i for i in drawn if shard.holds(image_ids[i])]
    layout = layout_of(groups, alone)
    canvas = layout_of(replace(groups, layout="grid"), alone)
    others = {"groups.layout to grid": canvas} if layout != canvas else {}
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=np.array([drawn[i] for i in rows], np.int64).reshape(-1, GROUP_SIZE),
        image_ids=table["image_id"],
        paths=table["path"],
        sizes=_sizes(table),
        labels=[labels[i] for i in rows],
        prompts=_prompts(prompt, classnames, pseudo_labels_path, image_ids, rows),
        layout=layout,
        others=others | _as_overview(layout),
    )


def layout_of(groups: GroupSettings, alone: Layout) -> Layout:
    """How the four images of a group are shown, where one by itself is shown in a known way."""
    if groups.layout == "grid":
        return Layout("grid", groups.canvas, groups.gap, square=alone.square)
    return replace(alone, kind=groups.layout)


def _as_overview(layout: Layout) -> dict[str, Layout]:
    """The same as what LLaVA-1.6 makes of any picture first, unless it is square already."""
    if layout.square is not None:
        return {}
    square = replace(layout, max_side=None, square=OVERVIEW)
    return {f"captioner.square_side to {OVERVIEW}": square}


def _sizes(table: pa.Table) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in ("width", "height")], axis=1)


def _prompts(
    prompt: str,
    classnames: Sequence[str],
    pseudo_labels_path: str | None,
    image_ids: Sequence[str],
    rows: Sequence[int],
) -> Callable[[int], str]:
    """The prompt of a row, its place for the pseudo-label filled."""
    if PLACE not in prompt:
        return lambda row: prompt
    if pseudo_labels_path is None:
        raise UserError(f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels.")
    labels = _pseudo_labels(pseudo_labels_path, image_ids)
    filled = [fill(prompt, classname) for classname in classnames]
    return lambda row: filled[labels[rows[row]]]


def _pseudo_labels(path: str, image_ids: Sequence[str]) -> list[int]:
    return tables.lookup(path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids)
