import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import FINETUNE

from latteclip.core.errors import UserError
from latteclip.train.settings import Finetune, Recipe


def test_rate_rises_linearly_then_falls_by_a_cosine():
    section = Recipe(**FINETUNE | {"warmup_steps": 4, "lr": 8.0})
    rates = [section.rate(step, 14) for step in range(14)]
    assert rates[:5] == pytest.approx([2, 4, 6, 8, 8])
    for step in range(4, 14):
        assert rates[step] == pytest.approx(4 * (1 + math.cos(math.pi * (step - 4) / 10)))
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.3


def test_a_batch_of_one_is_refused():
    with pytest.raises(UserError, match="batch_size"):
        Finetune(**FINETUNE | {"batch_size": 1})


@given(n=st.integers(2, 2_000_000))
def test_auto_follows_from_the_number_of_images(n):
    auto = dict.fromkeys(["epochs", "warmup_steps", "batch_size", "lr"], "auto")
    recipe = Finetune(**FINETUNE | auto).recipe(n, 1e-5)
    assert recipe.lr == 1e-5
    assert recipe.batch_size in (64, 128, 256, 512)
    assert 3 <= recipe.epochs <= 30
    steps = recipe.epochs * recipe.steps_per_epoch(n)
    assert recipe.warmup_steps <= steps / 10
    more = Finetune(**FINETUNE | auto).recipe(2 * n, 1e-5)
    assert more.batch_size >= recipe.batch_size
    assert more.epochs <= recipe.epochs


def test_numbers_win_over_auto():
    section = Finetune(**FINETUNE | {"lr": "auto"})
    assert section.recipe(10_000, 0.5) == Recipe(**FINETUNE | {"lr": 0.5})
    with pytest.raises(UserError, match=r"finetune\.lr"):
        section.recipe(10_000)
