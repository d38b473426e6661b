import hashlib

import numpy as np
import pytest

from latteclip.core import holdout
from latteclip.core.holdout import FEWEST, MOST, held_out, judging


def ids(n):
    return [f"class {i % 7}/{i}.png" for i in range(n)]


@pytest.mark.parametrize(("n", "share", "wanted"), [(205, 0.1, 20), (420, 0.1, 42), (60, 0.5, 30)])
def test_a_share_of_the_images_is_held_out_rounded_down(n, share, wanted):
    assert held_out(ids(n), share).sum() == wanted


@pytest.mark.parametrize(("n", "share"), [(199, 0.1), (1000, 0.0), (0, 0.5), (39, 0.5)])
def test_none_are_held_out_where_they_would_judge_nothing(n, share):
    assert not held_out(ids(n), share).any()
    assert len(held_out(ids(n), share)) == n


def test_a_large_dataset_does_without_no_more_images_than_it_takes(monkeypatch):
    monkeypatch.setattr(holdout, "MOST", 25)
    assert held_out(ids(500), 0.1).sum() == 25
    assert MOST >= 100 * FEWEST


def test_shares_without_an_exact_binary_form_lose_no_image():
    assert held_out(ids(1000), 0.29).sum() == 290


def test_the_choice_is_that_of_the_digest_whatever_the_order():
    names = ids(300)
    mask = held_out(names, 0.1)
    rng = np.random.default_rng(0)
    order = rng.permutation(300)
    assert np.array_equal(held_out([names[i] for i in order], 0.1), mask[order])

    def key(name):
        data = name.encode()
        return hashlib.sha256(len(data).to_bytes(8, "big") + data).hexdigest()

    wanted = set(sorted(names, key=key)[:30])
    assert {name for name, is_out in zip(names, mask, strict=True) if is_out} == wanted


def test_all_images_may_judge_and_of_very_many_the_first(monkeypatch):
    assert judging(ids(300)).all()
    monkeypatch.setattr(holdout, "MOST", 100)
    mask = judging(ids(300))
    assert mask.sum() == 100
    assert not (held_out(ids(300), 0.2) & ~mask).any()


def test_a_larger_share_holds_out_the_same_images_and_more():
    small, large = held_out(ids(400), 0.1), held_out(ids(400), 0.3)
    assert not (small & ~large).any()
