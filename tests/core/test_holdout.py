import numpy as np
import pytest

from latteclip.core.holdout import MAX_HELD_OUT, Fold, held_out_for_choice, left_out


def ids(n):
    return [f"class {i % 7}/{i}.png" for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, 99, 102, 777, 12_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.9])
def test_folds_share_all_images_or_none_and_leave_two_thirds_to_each_training(n, share):
    masks = np.stack([left_out(ids(n), Fold(share, seed)) for seed in (*range(12), 2026)])
    first, *others = masks.sum(axis=1).tolist()
    assert others == [first] * len(others)
    shared = masks.astype(int) @ masks.T
    assert set(shared.ravel().tolist()) <= {0, first}
    assert masks[:3].sum(axis=0).max(initial=0) <= 1  # of three seeds in a row
    assert first <= n // 3
    assert first == 0 or masks[:3].sum() >= 100
    assert (first > 0) == (share > 0 and n >= 102)
    assert masks.any(axis=0).sum() <= held_out_for_choice(ids(n)).sum() <= MAX_HELD_OUT
