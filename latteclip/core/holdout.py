"""Which of N training images compare classifiers, and which each of S trainings leaves out."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.hashing import digest

MIN_HELD_OUT = 100  # to compare trainings
MAX_HELD_OUT = 10_000  # with so many, the standard error of a share is at most half a point
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fold:
    """The part of the training images that one of S trainings leaves out, each another part."""

    share: float = 0.0  # share of the training images; 0: no training leaves out any
    number: int = 0  # which of the S trainings
    count: int = 1  # S


NO_FOLD = Fold()  # all images are trained on


def held_out_for_choice(image_ids: Sequence[str]) -> Mask:
    """Return the mask [N] of the MAX_HELD_OUT training images with the smallest id digests."""
    return _ranks(image_ids) < MAX_HELD_OUT


def left_out(image_ids: Sequence[str], fold: Fold) -> Mask:
    """Return the mask [N] of the training images that a training leaves out.

    The first images of `held_out_for_choice` are divided among the S trainings. Each gets the share
    of N, or MIN_HELD_OUT / S images if that is more, but at most a third of N. No training leaves
    out any image if all together would leave out fewer than MIN_HELD_OUT.
    """
    n = len(image_ids)
    count = fold.count
    by_share = int(round(fold.share * n, 6))
    each = max(by_share, math.ceil(MIN_HELD_OUT / count))
    most = n * count // max(count, 3)
    total = min(count * each, most, MAX_HELD_OUT)
    if not fold.share or total < MIN_HELD_OUT:
        total = 0
    first = total * fold.number // count
    end = total * (fold.number + 1) // count
    ranks = _ranks(image_ids)
    return (first <= ranks) & (ranks < end)


def left_out_images(images: str, fold: Fold, training_images: str | None) -> pa.Table:
    """Return `image_id` and `path` of the images that a training left out, if they are still there.

    `training_images` is the list of the images that there were. None: those of the index.
    """
    train, _ = tables.read_unlabelled(images, training=True)
    ids = train["image_id"]
    if training_images:
        ids = tables.read(training_images, tables.TRAINING_IMAGES)["image_id"]
    absent = ids.filter(pa.array(left_out(tables.Strings(ids), fold)))
    return train.filter(pc.is_in(train["image_id"], absent))


def is_outdated(images: str, training_images: str) -> bool:
    """Return whether the training images of an index are others than those of a list."""
    train, _ = tables.read_unlabelled(images, training=True)
    listed = tables.read(training_images, tables.TRAINING_IMAGES)
    return set(train["image_id"].to_pylist()) != set(listed["image_id"].to_pylist())


def _ranks(image_ids: Sequence[str]) -> npt.NDArray[np.int_]:
    """Return the rank [N] of each image by its id's digest, at most MAX_HELD_OUT."""
    n = len(image_ids)
    ranks = np.full(n, MAX_HELD_OUT)
    first = heapq.nsmallest(MAX_HELD_OUT, range(n), key=lambda row: digest(image_ids[row]))
    ranks[first] = np.arange(len(first))
    return ranks
