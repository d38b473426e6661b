"""Training images whose votes judge classifiers, and the part that each training leaves out.

Letters: N training images, S seeds of a run.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latteclip.core.hashing import digest

FEWEST = 100  # images that it takes to judge a training
MOST = 10_000  # with so many, the standard error of a share is at most half a point
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fold:
    """The part of the training images that one of S trainings leaves out.

    Each training leaves out another part. Together they judge S times as many images, each by a
    model that was not trained on it.
    """

    share: float = 0.0  # of the training images; 0: no training leaves out any
    number: int = 0  # which of the S trainings
    count: int = 1  # S


NO_FOLD = Fold()  # all images are trained on


def judging(image_ids: Sequence[str]) -> Mask:
    """Return which of the N training images may judge [N]: all of them, or MOST of them.

    They are those whose ids have the smallest SHA-256 digests, whatever the order of the ids.
    """
    return _ranks(image_ids) < MOST


def left_out(image_ids: Sequence[str], fold: Fold) -> Mask:
    """Return which of the N training images a training leaves out [N].

    The first of those that may judge are shared out among the S trainings: to each the share of N,
    or FEWEST / S images where that is more, but at most a third of N. No training leaves out any
    where all of them together would leave out fewer than FEWEST.
    """
    n = len(image_ids)
    each = max(int(round(fold.share * n, 6)), -(-FEWEST // fold.count))
    total = min(fold.count * each, n * fold.count // max(fold.count, 3), MOST)
    if not fold.share or total < FEWEST:
        total = 0
    first, end = (total * number // fold.count for number in (fold.number, fold.number + 1))
    ranks = _ranks(image_ids)
    found: Mask = (first <= ranks) & (ranks < end)
    return found


def _ranks(image_ids: Sequence[str]) -> npt.NDArray[np.int_]:
    """Return the place [N] of each image by its id's digest, MOST for those after the first."""
    n = len(image_ids)
    ranks = np.full(n, MOST)
    first = heapq.nsmallest(MOST, range(n), key=lambda row: digest(image_ids[row]))
    ranks[first] = np.arange(len(first))
    return ranks
