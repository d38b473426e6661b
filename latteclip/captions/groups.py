"""Draw the groups of four images that one caption describes."""

import hashlib
from collections.abc import Sequence

import numpy as np

GROUP_SIZE = 4
SEED = 0  # of the groups


def draw_groups(
    image_ids: Sequence[str], labels: Sequence[int], seed: int
) -> dict[int, list[int]]:
    """Draw four images of its class for every image, at random (LatteCLIP, section 3.2).

    There are four random circular orders of the class's n images. Each of the four drawn images is
    the next one in one of these orders. So every image is drawn about four times. An image that is
    added to the class later changes only the few groups in which it takes its place. Of fewer than
    four images, members are drawn with replacement. Returns the indices of the four members by that
    of each of the N images.
    """
    keys = np.array([_keys(seed, image_id) for image_id in image_ids])  # [N, 4]
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    groups = np.empty((len(keys), GROUP_SIZE), np.int64)
    for indices in of_class.values():
        members = np.array(indices)
        groups[members] = members[_of_class(keys[members])]
    return dict(enumerate(groups.tolist()))


def _keys(seed: int, image_id: str) -> list[int]:
    """Return four random numbers that depend on nothing but the arguments."""
    state = hashlib.sha256(f"{seed} {image_id}".encode()).digest()
    return [int.from_bytes(state[6 * turn : 6 * turn + 6]) for turn in range(GROUP_SIZE)]


def _of_class(keys: np.ndarray) -> np.ndarray:
    """Return four images for each of n: int [n, 4]. Column k of the keys sorts the k-th order."""
    n = len(keys)
    if n < GROUP_SIZE:
        return keys % n
    orders = np.argsort(keys, axis=0, kind="stable")  # [n, 4]: the image at each place
    places = np.argsort(orders, axis=0)  # [n, 4]: the place of each image
    groups = np.empty((n, GROUP_SIZE), np.int64)
    for turn in range(GROUP_SIZE):
        step = np.ones(n, np.int64)
        for _ in range(turn + 1):  # until the image is none of the earlier ones
            drawn = orders[(places[:, turn] + step) % n, turn]
            step += (groups[:, :turn] == drawn[:, None]).any(axis=1)
        groups[:, turn] = drawn
    return groups
