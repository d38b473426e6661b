"""Training images that no label is learned from and no training sees.

Votes for them judge classifiers that never met them. Letters: N training images.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latteclip.core.digest import digest

FEWEST = 20  # fewer images judge nothing, so that none are held out
MOST = 10_000  # with so many, the standard error of a share is at most half a point


def held_out(image_ids: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Which of the N training images are held out [N]: a share of them, the same on every machine.

    They are those whose ids have the smallest SHA-256 digests, whatever the order of the ids.

    Args:
        image_ids: of the N images.
        share: between 0 and 1; the number of images is rounded down.
    """
    n = min(int(round(share * len(image_ids), 6)), MOST)
    mask = np.zeros(len(image_ids), dtype=bool)
    if n >= FEWEST:
        order = sorted(range(len(image_ids)), key=lambda row: digest(image_ids[row]))
        mask[order[:n]] = True
    return mask
