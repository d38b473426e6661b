import pytest

from latteclip.config import jobs, layers


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
    found = jobs.closure("latteclip.a.first")
    names = ("a.first", "b.plain", "b.second", "b.third", "c.fourth")
    assert found == {f"latteclip.{name}" for name in names}


EDITS = {  # a module: stages that an edit reruns, and stages that it does not
    "clip.clip_config": ("evaluate.evaluate", "report.summarize"),
    "labels.label_model": ("labels.fuse_labels", "train.finetune"),
    "report.gallery": ("report.report_dataset", "report.summarize"),
    "core.files": ("captions.caption", None),  # which reads users' tables
    # It has no effect on results, or its values are parameters.
    "core.gpus": (None, "train.finetune"),
    "config.keys": (None, "train.finetune"),
    "train.objectives.losses": (None, "train.finetune"),  # code of the objective
}


def test_an_edit_reruns_the_stages_that_import_the_module():
    for edited, (rerun, spared) in EDITS.items():
        for stage, reruns in ((rerun, True), (spared, False)):
            found = jobs.closure(f"latteclip.{stage}") if stage else set()
            assert not stage or (f"latteclip.{edited}" in found) == reruns, edited
