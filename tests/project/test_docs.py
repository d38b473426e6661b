"""The documents: generated parts are up to date, links lead somewhere, commands are taken."""

import re
import shlex

import generate_docs
import pytest
from snakemake.cli import parse_config
from support.tiny import ROOT

from latteclip.cli import main
from latteclip.config import layers
from latteclip.config.resolve import Run

PAGES = (
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    ROOT / "config" / "README.md",
)


@pytest.mark.parametrize("path", generate_docs.files(), ids=lambda path: path.name)
def test_what_is_written_from_the_sections_is_up_to_date(path):
    assert path.read_text("utf-8") == generate_docs.files()[path], "run `make docs`"


def anchors(page):
    """Return the anchors of the headings of a page, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading) for heading in headings)
    return {heading.strip().lower().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?", page.read_text("utf-8"))
    for name, anchor in links:
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_pages_name_are_there(page):
    folders = "latteclip|workflow|tests|tools|docs"
    names = re.findall(rf"`((?:{folders})/[\w./]+)`", page.read_text("utf-8"))
    assert [name for name in names if not (ROOT / name).exists()] == []


def commands(program):
    """Return the words of each command of the pages, without a comment."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(rf"^(?:    |\$ )?({program} .+)$", text, re.MULTILINE):
            if "..." not in line:
                found.append(shlex.split(line.split("  #")[0])[1:])
    assert found
    return found


def test_the_program_takes_the_commands_of_the_pages():
    for words in commands("latteclip"):
        if words[0] == "workflow":  # the arguments of snakemake
            continue
        main.parser().parse_args([word for word in words if not word.startswith("<")])


def test_the_configuration_has_the_keys_of_the_commands_of_the_pages(tmp_path):
    (tmp_path / "split_zhou_StanfordCars.json").touch()
    for words in commands("snakemake"):
        options, taking = {"--config": [], "--configfile": []}, None
        for word in words:
            if word.startswith("-"):
                taking = word if word in options else None
            elif taking == "--configfile":
                options[taking].append(str(ROOT / word))
            elif taking and "=" in word:
                folder = re.sub(r"^image_dir=.*", f"image_dir={tmp_path}", word)
                options[taking].append(folder)
        pairs, files = options.values()
        given = layers.merge(*map(layers.read, files), parse_config(pairs))
        if given.get("dataset") == "mine":
            given.setdefault("image_dir", str(tmp_path))
        Run(layers.defaults(project=None), given)


GUIDES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_page_begins_with_the_question_that_it_answers(page):
    first = re.split(r"\n#", page.read_text("utf-8"), maxsplit=1)[0]
    assert "?" in first, "before its first section"
