import dataclasses
import math

import pytest
from support.commands import SETTINGS
from support.tiny import DEMO_LLAVA

from latteclip.captions.engines import base as engines
from latteclip.captions.engines.base import letter_of, log_sum
from latteclip.core.errors import UserError


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_missing_model_folder_is_named_before_the_engine_starts(engine):
    settings = dataclasses.replace(SETTINGS, model="./nowhere", engine=engine)
    with pytest.raises(UserError, match=r"folder \./nowhere"):
        engines.start(settings, threads=1, pictures=1)


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    for file in DEMO_LLAVA.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = dataclasses.replace(SETTINGS, model=str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        engines.start(settings, threads=1, pictures=1)


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), (" B", "B"), ("  B", None), ("a", None), ("A.", None), ("", None), ("D", None)],
)
def test_a_letter_is_one_with_or_without_a_space(text, letter):
    assert letter_of(text, ("A", "B", "C")) == letter


def test_sums_of_probabilities_do_not_overflow():
    assert log_sum([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2))
    assert log_sum([]) == log_sum([-math.inf]) == -math.inf
