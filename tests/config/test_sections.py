"""A key is declared once, in one section."""

import ast
import json
from collections import Counter
from pathlib import Path

import declared_again
import pytest
import yaml
from support.tiny import ROOT

from latteclip.config import layers
from latteclip.config.model import Config, check
from latteclip.config.sections.captioner import CaptionerSection
from latteclip.config.sections.compute import ComputeSection
from latteclip.config.sections.training import TrainingSection

PACKAGE = ROOT / "latteclip"


def test_no_settings_of_a_stage_declare_a_key_again():
    assert declared_again.declared_again(ROOT) == {}


def test_a_second_declaration_is_found(tmp_path):
    section = tmp_path / "latteclip" / "config" / "sections" / "clip.py"
    stage = tmp_path / "latteclip" / "labels" / "encode.py"
    rules = tmp_path / "workflow" / "rules" / "labels.smk"
    for path in (section, stage, rules):
        path.parent.mkdir(parents=True)
    section.write_text(
        "class ClipSection(Section):\n    precision: str = key('bf16', 'bits')\n"
    )
    stage.write_text(
        "class Settings:\n    clip: ClipSection\n    precision: str = 'fp16'\n"
        "def encode(settings: Settings): ...\n"
    )
    rules.write_text("rule encode:\n")
    assert declared_again.declared_again(tmp_path) == {"Settings": ["precision"]}


def test_the_defaults_of_the_file_are_those_of_the_fields():
    """Also of keys that a section of a section has."""
    values = yaml.safe_load((layers.CONFIG / "config.yaml").read_text("utf-8"))
    methods = values.pop("methods")
    default = Config().model_dump()
    assert layers.merge(default, values) == default
    assert set(methods) == set(Config.model_validate({"methods": methods}).methods)


def test_a_layer_has_the_keys_that_it_was_given_and_no_defaults():
    layer = {"finetune": {"lr": 0.5}, "datasets": {"new": {"clip": {"precision": "fp16"}}}}
    assert check(layer) == layer


def test_every_default_is_valid():
    text = json.dumps(Config().model_dump(exclude={"datasets", "methods"}))
    assert Config.model_validate_json(text).model_dump() == Config().model_dump()
    assert TrainingSection(**TrainingSection().model_dump()) == TrainingSection()


@pytest.mark.parametrize(
    ("model", "side", "square"),
    [
        ("llava-hf/llava-v1.6-mistral-7b-hf", "auto", 336),
        ("Qwen/Qwen2-VL-2B-Instruct", "auto", None),
        ("llava-hf/llava-v1.6-mistral-7b-hf", 112, 112),
        ("llava-hf/llava-v1.6-mistral-7b-hf", None, None),
    ],
)
def test_the_captioner_decides_on_a_square(model, side, square):
    assert CaptionerSection(model=model, square_side=side).square == square


def test_a_section_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        ComputeSection().cache_gib = 1


def test_no_class_name_exists_twice():
    names = Counter()
    for path in sorted(Path(PACKAGE).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        names.update(node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, number in names.items() if number > 1] == []
