"""Commands in the documents: the program's parser takes them, and their keys are keys."""

import re
import shlex

import pytest
from support.tiny import ROOT

from latteclip.cli import main
from latteclip.config import layers
from latteclip.config.configuration import Configuration

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def commands(program):
    """Yield the page and the words of each command: its line, without a comment."""
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(rf"^(?:    )?({program} .+)$", text, re.M):
            if "..." not in line:
                yield page.name, shlex.split(line.split("  #")[0])[1:]


def cases(program):
    found = list(commands(program))
    assert found
    names = [f"{page}: {' '.join(words)}"[:80] for page, words in found]
    return pytest.mark.parametrize("words", [words for _, words in found], ids=names)


@cases("latteclip")
def test_the_program_takes_the_command(words, monkeypatch):
    main.parser().parse_args([word for word in words if not word.startswith("<")])


@cases("snakemake")
def test_the_configuration_has_the_keys_of_the_command(words, tmp_path):
    (tmp_path / "photos").mkdir()
    pairs, files, taking = [], [], None
    for word in words:
        if word.startswith("-"):
            taking = {"--config": pairs, "--configfile": files}.get(word)
        elif taking is not None and ("=" in word or taking is files):
            taking.append(word)
    pairs = [re.sub(r"^image_dir=.*", f"image_dir={tmp_path / 'photos'}", pair) for pair in pairs]
    given = layers.given(pairs, [str(ROOT / file) for file in files])
    if given.get("dataset") == "mine":
        given.setdefault("image_dir", str(tmp_path / "photos"))
    Configuration(layers.defaults(project=None), given)
