import pytest

from latteclip.cli.commands import STAGES
from latteclip.config import layers
from latteclip.config import stage_code as code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a module of a package `latteclip` in a folder."""

    def write(name, text=""):
        path = tmp_path.joinpath("latteclip", *name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").write_text('"""A room."""\n')
        path.write_text(text)

    monkeypatch.setattr(layers, "PACKAGE", tmp_path / "latteclip")
    return write


def test_imports_of_every_form_are_followed(package):
    package("a.first", "import latteclip.b.plain\nfrom latteclip.b import second\n")
    package("b.plain", "from latteclip.core import terminal\n")  # which has no effect
    package("b.second", "def f():\n    from latteclip.b.third import name\n")
    package(
        "b.third", "import json, torch\nfrom latteclip.c.fourth import (\n    x as y,\n)\n"
    )
    package("c.fourth", "from latteclip.a import first\n")
    package("c.stranger")
    package("core.terminal", "from latteclip.c import stranger\n")
    found = code.closure("latteclip.a.first")
    names = ("a.first", "b.plain", "b.second", "b.third", "c.fourth")
    assert found == {f"latteclip.{name}" for name in names}


def test_a_stage_has_its_sources_and_no_others(monkeypatch):
    monkeypatch.chdir(layers.ROOT)
    found = code.sources("latteclip.train.finetune")
    assert found == sorted(found)
    assert {"latteclip/train/finetune.py", "latteclip/train/training.py"} <= set(found)
    # The objective is imported by its name: a rule adds the one that its method has.
    assert "latteclip/train/objectives/flyp.py" not in found
    assert "latteclip/train/objectives/flyp.py" in code.sources(
        "latteclip.train.objectives.flyp"
    )
    assert not [file for file in found if file.endswith("__init__.py") or "/cli/" in file]
    assert "latteclip/core/terminal.py" not in found


EDITS = {  # a module: stages that an edit reruns, and stages that it does not
    "config.sections.captioner": ("captions.caption", "train.finetune"),
    "config.sections.finetune": ("train.finetune", "captions.caption"),
    "config.sections.split": ("data.index_images", "captions.caption"),
    "captions.text": ("captions.summarize_captions", "captions.caption"),
    "clip.clip_config": ("evaluate.evaluate", "report.summarize"),
    "evaluate.metrics": ("evaluate.evaluate", "train.finetune"),
    "labels.label_model": ("labels.fuse_labels", "train.finetune"),
    "labels.vote_files": ("labels.write_votes", "train.finetune"),
    "report.gallery": ("report.report_dataset", "report.index_results"),
}
NO_SOURCE = {  # a rule has it as an input of its own, or it has no effect on results
    "config.sections.switches": "train.finetune",
    "train.objectives.losses": "train.finetune",
    "captions.show": "captions.caption",
    "cli.main": "report.report_dataset",
    "core.gpus": "train.finetune",
}


def reruns(stage, edited):
    return f"latteclip.{edited}" in code.closure(f"latteclip.{stage}")


def test_an_edit_reruns_the_stages_that_import_the_module():
    for edited, (rerun, spared) in EDITS.items():
        assert (reruns(rerun, edited), reruns(spared, edited)) == (True, False), edited
    assert not [each for each in NO_SOURCE.items() if reruns(each[1], each[0])]


def test_no_stage_has_the_records_among_its_sources():
    """A new objective, engine or voter would rerun every stage that imports them."""
    for name, module in STAGES.items():
        if "download" not in name:  # whose rules have no sources
            assert "latteclip.config.methods" not in code.closure(module), module


def test_sources_are_absolute_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(layers.PACKAGE / "core" / "tables.py") in code.sources(
        "latteclip.core.tables"
    )
    assert str(layers.PACKAGE / "report" / "templates" / "page.css") in code.templates()
