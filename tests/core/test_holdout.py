import numpy as np
import pytest

from latteclip.core.holdout import MAX_HELD_OUT, Fold, held_out_for_choice, left_out


def ids(n):
    return [f"class {i % 7}/{i}.png" for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, 99, 102, 777, 12_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.9])
def test_folds_share_no_image_and_leave_two_thirds_to_each_training(n, share):
    masks = np.stack([left_out(ids(n), Fold(share, number)) for number in range(12)])
    assert masks.sum(axis=0).max(initial=0) <= 1
    first, *others = masks.sum(axis=1).tolist()
    assert all(size in (0, first) for size in others)
    assert first <= n // 3
    assert first == 0 or masks[:3].sum() >= 100
    assert (first > 0) == (share > 0 and n >= 102)
    assert masks.sum() <= held_out_for_choice(ids(n)).sum() <= MAX_HELD_OUT
