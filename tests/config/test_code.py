import pytest

from latteclip.config import code, layers


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


EDITS = {  # a module: stages that an edit reruns, and stages that it does not
    "clip.clip_config": ("evaluate.evaluate", "report.summarize"),
    "evaluate.predictions": ("evaluate.evaluate", "train.finetune"),
    "labels.label_model": ("labels.fuse_labels", "train.finetune"),
    "labels.pseudo_label_images": ("labels.write_votes", "train.finetune"),
    "report.gallery": ("report.report_dataset", "report.summarize"),
}
NO_SOURCE = {  # a rule has it as an input of its own, or it has no effect on results
    "train.objectives.losses": "train.finetune",
    "cli.main": "report.report_dataset",
    "core.gpus": "train.finetune",
    "config.keys": "train.finetune",
}


def reruns(stage, edited):
    return f"latteclip.{edited}" in code.closure(f"latteclip.{stage}")


def test_an_edit_reruns_the_stages_that_import_the_module():
    for edited, (rerun, spared) in EDITS.items():
        assert (reruns(rerun, edited), reruns(spared, edited)) == (True, False), edited
    stages = ("finetune", "find_learning_rate", "average_weights", "assemble_model")
    assert not any(reruns(f"train.{stage}", "labels.label_model") for stage in stages)
    assert reruns("captions.caption", "core.files")  # which reads users' tables
    assert not [each for each in NO_SOURCE.items() if reruns(each[1], each[0])]
