import shutil

import pytest
from support.tiny import ROOT

from latteclip.captions.write import code_version


@pytest.fixture
def package(tmp_path):
    """A copy of the package's code."""
    folder = tmp_path / "latteclip"
    only_code = shutil.ignore_patterns("models", "templates", "__pycache__")
    shutil.copytree(ROOT / "latteclip", folder, ignore=only_code)
    return folder


def edit(package, file):
    assert (package / file).is_file()
    with (package / file).open("a") as opened:
        opened.write("# Edited.\n")


def test_the_version_is_that_of_the_code_wherever_it_lies(package):
    assert code_version(package) == code_version()
    assert code_version().startswith("latteclip ")


@pytest.mark.parametrize(
    "file",
    [
        *("captions/text.py", "captions/engines/vllm.py", "data/images.py"),
    ],
)
def test_an_edit_of_code_that_decides_captions_changes_the_version(package, file):
    before = code_version(package)
    edit(package, file)
    assert code_version(package) != before


@pytest.mark.parametrize("file", ["train/finetune.py", "core/terminal.py"])
def test_an_edit_of_other_code_does_not(package, file):
    before = code_version(package)
    edit(package, file)
    assert code_version(package) == before
