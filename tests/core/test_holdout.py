import hashlib

import numpy as np
import pytest

from latteclip.core import holdout
from latteclip.core.holdout import (
    MAX_HELD_OUT,
    MIN_HELD_OUT,
    Fold,
    held_out_for_choice,
    left_out,
)


def ids(n):
    return [f"class {i % 7}/{i}.png" for i in range(n)]


def folds(n, share, count):
    return [left_out(ids(n), Fold(share, number, count)) for number in range(count)]


@pytest.mark.parametrize("n", [0, 1, 99, 101, 777])
@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.33])
def test_folds_share_no_image_and_leave_two_thirds_to_each_training(n, count, share):
    masks = np.stack(folds(n, share, count))  # [S, N]
    assert masks.shape == (count, n)
    assert masks.sum(axis=0).max(initial=0) <= 1
    sizes = masks.sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.max() <= -(-n // 3)
    assert sizes.sum() == 0 or MIN_HELD_OUT <= sizes.sum() <= MAX_HELD_OUT
    assert share > 0 or sizes.sum() == 0
    if sizes.sum():
        assert sizes.max() >= min(share * n, n // max(count, 3)) - 1


def test_a_large_dataset_does_without_no_more_images_than_it_takes(monkeypatch):
    monkeypatch.setattr(holdout, "MAX_HELD_OUT", 300)
    masks = np.stack(folds(5000, 0.1, 3))
    assert masks.sum() == held_out_for_choice(ids(5000)).sum() == 300
    assert held_out_for_choice(ids(300)).all()
    assert not (masks.any(axis=0) & ~held_out_for_choice(ids(5000))).any()


def test_the_folds_follow_the_digests_whatever_the_order_of_the_images():
    def key(name):
        data = name.encode()
        return hashlib.sha256(len(data).to_bytes(8, "big") + data).hexdigest()

    names = np.random.default_rng(0).permutation(ids(420)).tolist()
    ranked = sorted(names, key=key)
    for number in range(3):
        mask = left_out(names, Fold(0.1, number, 3))
        wanted = set(ranked[42 * number : 42 * (number + 1)])
        assert {name for name, is_out in zip(names, mask, strict=True) if is_out} == wanted
