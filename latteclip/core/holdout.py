"""Which of N training images compare classifiers, and which each training leaves out."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latteclip.core.files import digest

# Images that a training leaves out: with three trainings at least about 100, and at most so many
# that the standard error of a share is half a point.
MIN_LEFT_OUT = 34
MAX_LEFT_OUT = 3_333
MAX_HELD_OUT = 10_000  # images that compare classifiers
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fold:
    """The part of the training images that a training leaves out. Two share all images or none."""

    # Share of the training images; 0: no training leaves out any.
    share: float = 0.0
    number: int = 0  # the seed of the training


NO_FOLD = Fold()  # all images are trained on


def held_out_for_choice(image_ids: Sequence[str]) -> Mask:
    """Return the mask [N] of the MAX_HELD_OUT training images with the smallest id digests."""
    return _ranks(image_ids) < MAX_HELD_OUT


def left_out(image_ids: Sequence[str], fold: Fold) -> Mask:
    """Return the mask [N] of the training images that a training leaves out.

    The first images of `held_out_for_choice` are cut into parts of one size, whatever the number of
    trainings: the share of N, from MIN_LEFT_OUT to MAX_LEFT_OUT images and at most a third. Seeds
    take the parts in turn, again from the first after the last one. None leaves out any where N is
    less than three parts.
    """
    n = len(image_ids)
    size = min(MAX_LEFT_OUT, n // 3, max(MIN_LEFT_OUT, round(fold.share * n)))
    if not fold.share or n < 3 * MIN_LEFT_OUT:
        return np.zeros(n, dtype=bool)
    n_parts = min(n, MAX_HELD_OUT) // size
    first = size * (fold.number % n_parts)
    ranks = _ranks(image_ids)
    return (first <= ranks) & (ranks < first + size)


def unseen(image_ids: Sequence[str], fold: Fold, drawn: Sequence[str]) -> Mask:
    """Return the mask [N] of the images that a training did not see.

    It left out those of its fold, and those with drawn answers, which check the labels.
    """
    return left_out(image_ids, fold) | np.isin(np.asarray(image_ids), drawn)


def _ranks(image_ids: Sequence[str]) -> npt.NDArray[np.int_]:
    """Return the rank [N] of each image by its id's digest, at most MAX_HELD_OUT."""
    n = len(image_ids)
    ranks = np.full(n, MAX_HELD_OUT)
    first = heapq.nsmallest(
        MAX_HELD_OUT, range(n), key=lambda row: digest(image_ids[row])
    )
    ranks[first] = np.arange(len(first))
    return ranks
