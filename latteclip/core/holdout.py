"""Training images whose votes judge classifiers, and those of them that no training sees.

Letters: N training images.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latteclip.core.digest import digest

FEWEST = 20  # fewer images judge nothing
MOST = 10_000  # with so many, the standard error of a share is at most half a point
Mask = npt.NDArray[np.bool_]


def judging(image_ids: Sequence[str]) -> Mask:
    """Which of the N training images may judge [N]: all of them, or MOST of them.

    They are those whose ids have the smallest SHA-256 digests, whatever the order of the ids.
    """
    return _first(image_ids, MOST)


def held_out(image_ids: Sequence[str], share: float) -> Mask:
    """Which of the N training images no training sees, and no label is learned from [N].

    A share of them, rounded down: of those that may judge the first ones. None where that would be
    fewer than FEWEST.

    Args:
        image_ids: of the N images.
        share: between 0 and 1.
    """
    n = min(int(round(share * len(image_ids), 6)), MOST)
    return _first(image_ids, n if n >= FEWEST else 0)


def _first(image_ids: Sequence[str], n: int) -> Mask:
    """The n images whose ids have the smallest digests."""
    mask = np.zeros(len(image_ids), dtype=bool)
    if n >= len(image_ids):
        mask[:] = True
    elif n > 0:
        mask[heapq.nsmallest(n, range(len(image_ids)), lambda row: digest(image_ids[row]))] = True
    return mask
