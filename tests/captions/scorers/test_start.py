import pytest
from support.tiny import ROOT

from latteclip.captions.engines import start as engines
from latteclip.captions.scorers import start as scorers
from latteclip.core.errors import UserError


def test_every_engine_has_a_scorer():
    folder = ROOT / "latteclip" / "captions" / "scorers"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "start", "tokens"}
    assert modules == set(scorers.CLASSES) == set(engines.CLASSES)
    for engine, name in scorers.CLASSES.items():
        assert f"class {name}" in (folder / f"{engine}.py").read_text("utf-8")


def test_a_server_is_asked_for_letters_alone():
    with pytest.raises(UserError, match=r"captioner\.engine openai"):
        scorers.check("openai", "likelihood")
    scorers.check("openai", "multiple_choice")
    scorers.check("vllm", "likelihood")
