import dataclasses

import pytest
from support.commands import SETTINGS
from support.tiny import DEMO_LLAVA, ROOT

from latteclip.captions.engines import start as engines
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
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "start"}
    assert modules == set(engines.CLASSES)
    for engine, name in engines.CLASSES.items():
        assert f"class {name}" in (folder / f"{engine}.py").read_text("utf-8")
