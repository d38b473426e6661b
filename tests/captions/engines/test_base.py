import dataclasses
import math

import pytest
from support.commands import SETTINGS
from support.tiny import DEMO_LLAVA, ROOT

from latteclip.captions.engines import base as engines
from latteclip.captions.engines.base import letter_of, log_sum
from latteclip.core.errors import UserError


def test_an_unknown_engine_is_named():
    with pytest.raises(UserError, match="'vlm'"):
        engines.check(dataclasses.replace(SETTINGS, engine="vlm"))


@pytest.mark.parametrize("model", ["./nowhere", "some/deep/folder"])
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_missing_model_folder_is_named_before_the_engine_starts(model, engine):
    settings = dataclasses.replace(SETTINGS, model=model, engine=engine)
    with pytest.raises(UserError, match=model):
        engines.check(settings)


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    for file in DEMO_LLAVA.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = dataclasses.replace(SETTINGS, model=str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        engines.start(settings, threads=1, pictures=1)


def test_every_engine_is_a_module_with_a_class():
    folder = ROOT / "latteclip" / "captions" / "engines"
    for engine, name in engines.ENGINES.items():
        assert f"class {name}" in (folder / f"{engine}.py").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), (" B", "B"), ("  B", None), ("a", None), ("A.", None), ("", None), ("D", None)],
)
def test_a_letter_is_one_with_or_without_a_space(text, letter):
    assert letter_of(text, ("A", "B", "C")) == letter


def test_sums_of_probabilities_do_not_overflow():
    assert log_sum([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2))
    assert log_sum([]) == log_sum([-math.inf]) == -math.inf
