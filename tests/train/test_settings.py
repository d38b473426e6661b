import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import FINETUNE

from latteclip.core.errors import UserError
from latteclip.core.settings import from_values
from latteclip.train.settings import Compute, Finetune, FinetuneSettings, Recipe


def test_rate_rises_linearly_then_falls_by_a_cosine():
    section = Recipe(**FINETUNE | {"warmup_steps": 4, "lr": 8.0})
    rates = [section.rate(step, 14) for step in range(14)]
    assert rates[:5] == pytest.approx([2, 4, 6, 8, 8])
    for step in range(4, 14):
        assert rates[step] == pytest.approx(4 * (1 + math.cos(math.pi * (step - 4) / 10)))
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.3


def test_rate_without_warm_up_starts_at_the_top():
    assert Recipe(**FINETUNE | {"warmup_steps": 0, "lr": 8.0}).rate(0, 10) == 8


def test_a_warm_up_longer_than_the_training_never_reaches_the_top():
    section = Recipe(**FINETUNE | {"warmup_steps": 10, "lr": 8.0})
    assert [section.rate(step, 3) for step in range(3)] == pytest.approx([0.8, 1.6, 2.4])


def test_a_batch_of_one_is_refused():
    with pytest.raises(UserError, match="batch_size is 1"):
        Finetune(**FINETUNE | {"batch_size": 1})


def test_words_are_one_template_or_several_and_synonyms():
    values = {"model": "m", "pretrained": None, "objective": "flyp", "finetune": FINETUNE}
    for template in ("{}.", ["{}.", "a {}"]):
        settings = from_values(FinetuneSettings, {**values, "template": template})
        assert settings.words.template == "{}."
    more = {"template": "{}", "class_synonyms": {"cat": ["puss"]}}
    assert from_values(FinetuneSettings, {**values, **more}).words.synonyms == {"cat": ["puss"]}
    with pytest.raises(UserError, match=r"class_synonyms\.cat must be a list"):
        from_values(FinetuneSettings, {**values, **more, "class_synonyms": {"cat": "puss"}})


def test_sections_are_typed_at_the_door():
    values = {"model": "m", "pretrained": None, "template": "{}", "objective": "flyp"}
    settings = from_values(FinetuneSettings, {**values, "finetune": FINETUNE})
    assert settings.finetune == Finetune(**FINETUNE)
    assert settings.compute == Compute()
    with pytest.raises(UserError, match=r"'finetune\.warmup'; did you mean warmup_steps"):
        from_values(FinetuneSettings, {**values, "finetune": {**FINETUNE, "warmup": 1}})
    with pytest.raises(UserError, match=r"finetune\.batch_norm must be 'frozen' or 'train'"):
        from_values(FinetuneSettings, {**values, "finetune": {**FINETUNE, "batch_norm": "on"}})
    with pytest.raises(
        UserError, match=r"compute\.micro_batch must be a whole number or 'auto' or null"
    ):
        compute = {"micro_batch": "8"}
        from_values(FinetuneSettings, {**values, "finetune": FINETUNE, "compute": compute})


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
