"""Which images are described together (LatteCLIP, section 3.2).

Letters: N images, n images of one class, G groups.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

GROUP_SIZE = 4


def draw_groups(
    image_ids: Sequence[str], labels: Sequence[int], seed: int, per_class: int | None = None
) -> dict[int, list[int]]:
    """Four images of its class for every image, drawn at random.

    Each of the four comes from a random circular order of the class's n images of its own: it is
    the one that follows. So every image is drawn about four times, and an image that is added to
    the class later changes the few groups in which it takes its place, and no others.

    Args:
        image_ids: of the N images.
        labels: their pseudo-labels.
        seed: another one gives other groups.
        per_class: draw for this many images of each class, chosen at random, instead of for all.

    Returns:
        For each image that has a group, its index and the indices of its four members, in order.
        They are different where the class has four images, and drawn with replacement where not.
    """
    keys = np.array([_keys(seed, image_id) for image_id in image_ids])  # [N, 5]
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    groups: dict[int, list[int]] = {}
    for indices in of_class.values():
        members = np.array(indices)
        chosen = np.argsort(keys[members, GROUP_SIZE], kind="stable")[:per_class]
        drawn = _of_class(keys[members, :GROUP_SIZE])
        groups |= {indices[i]: members[drawn[i]].tolist() for i in chosen}
    return dict(sorted(groups.items()))


def _keys(seed: int, image_id: str) -> list[int]:
    """Five random numbers that depend on nothing but the arguments."""
    state = hashlib.sha256(f"{seed} {image_id}".encode()).digest()
    return [int.from_bytes(state[6 * turn : 6 * turn + 6]) for turn in range(GROUP_SIZE + 1)]


def _of_class(keys: np.ndarray) -> np.ndarray:
    """For each of the n images of a class, four of them: int [n, 4].

    Args:
        keys: int [n, 4]; column k sorts the images into the k-th order.
    """
    n = len(keys)
    if n < GROUP_SIZE:
        return keys % n
    orders = np.argsort(keys, axis=0, kind="stable")  # [n, 4]: the image at each place
    places = np.argsort(orders, axis=0)  # [n, 4]: the place of each image
    groups = np.empty((n, GROUP_SIZE), np.int64)
    for turn in range(GROUP_SIZE):
        step = np.ones(n, np.int64)
        while True:
            drawn = orders[(places[:, turn] + step) % n, turn]
            taken = (groups[:, :turn] == drawn[:, None]).any(axis=1)
            if not taken.any():
                break
            step += taken
        groups[:, turn] = drawn
    return groups
