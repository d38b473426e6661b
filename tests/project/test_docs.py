import ast
import math
import re

import pytest
import yaml
from support.tiny import ROOT

from latteclip.config import layers, reference, shipped
from latteclip.config.configuration import Configuration
from latteclip.core.steps import steps_per_epoch
from latteclip.core.version import __version__
from latteclip.deploy import model_card

TROUBLES = ROOT / "docs" / "troubleshooting.md"
STAGES = ROOT / "docs" / "stages.md"
GAP = "…"


def quoted():
    """The sentences of the troubleshooting page, on one line each."""
    found = re.findall(r"\*\*`(.+?)`\*\*", TROUBLES.read_text("utf-8"), flags=re.DOTALL)
    return [" ".join(sentence.split()) for sentence in found]


def strings(tree):
    """Every string of a module, with a gap in place of what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else GAP for p in node.values]
            yield re.sub(f"{GAP}+", GAP, "".join(parts))


@pytest.fixture(scope="module")
def said():
    """All strings of the package, blanks and the logger's places as in the page."""
    files = (ROOT / "latteclip").rglob("*.py")
    every = [text for file in files for text in strings(ast.parse(file.read_text("utf-8")))]
    return [" ".join(text.replace("%s", GAP).split()) for text in every]


def test_there_are_sentences_of_every_stage():
    assert len(quoted()) >= 45


@pytest.mark.parametrize("sentence", quoted())
def test_every_quoted_sentence_is_one_of_the_program(said, sentence):
    # A gap of the page may stand for more than one of the source, such as "{a!r} of {b}".
    pattern = re.compile(".*?".join(map(re.escape, sentence.rstrip().split(GAP))), re.DOTALL)
    letters = len(sentence.replace(GAP, "").strip())
    assert letters >= 8
    assert any(pattern.search(text) for text in said), sentence


def test_the_test_of_sentences_would_see_another_wording(said):
    pattern = re.compile(r"Image .*? can not be decoded")
    assert not any(pattern.search(text) for text in said)


def schema_and_defaults():
    return [
        yaml.safe_load(file.read_text("utf-8")) for file in (shipped.SCHEMA, reference.DEFAULTS)
    ]


def test_the_tables_of_keys_are_those_of_the_schema():
    text = reference.README.read_text("utf-8")
    assert reference.render(text, *schema_and_defaults()) == text, "run `make docs`"


def test_every_key_of_the_schema_is_in_a_table():
    """Whatever the generator does, each described leaf and its description must be there."""
    schema, _ = schema_and_defaults()
    text = reference.README.read_text("utf-8")
    tables = re.findall(r"<!-- keys: \w+ -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    assert len(tables) == 3
    rows = "".join(tables)
    for section in ("clip", "inference", "captioner", "groups", "finetune", "split", "switches"):
        for key, part in schema["$defs"][section]["properties"].items():
            assert f"{section}.{key}`" in rows
            assert part["description"].replace("<", "&lt;") in rows


def test_a_changed_schema_or_default_changes_the_table():
    schema, defaults = schema_and_defaults()
    text = reference.README.read_text("utf-8")
    schema["$defs"]["clip"]["properties"]["colour"] = {
        "enum": ["red", "blue"],
        "description": "a new | key",
    }
    defaults["clip"]["colour"] = "red"
    defaults["seeds"] = [0, 7]
    changed = reference.render(text, schema, defaults)
    assert r"| `clip.colour` | `red` | a new \| key; one of `red`, `blue` |" in changed
    assert "| `seeds` | `[0, 7]` |" in changed


def test_a_limit_and_a_section_of_its_own_are_told():
    schema = {
        "properties": {"part": {"$ref": "#/$defs/part"}, "things": {"$ref": "#/$defs/things"}},
        "$defs": {
            "part": {"properties": {"n": {"description": "count", "exclusiveMinimum": 0}}},
            "things": {
                "description": "by name",
                "additionalProperties": {"properties": {"part": {"$ref": "#/$defs/part"}}},
            },
            "dataset": {},
        },
    }
    table = reference.render("<!-- keys: config -->\n<!-- end -->", schema, {})
    assert "| `part.n` | count; above 0 |" in table
    assert "| **`things`** | by name |" in table
    assert "| `things.<name>.part` | keys of `part`, for this one alone |" in table
    assert "things.<name>.part.n" not in table


def test_the_citation_is_that_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Cao", "Jaritz", "Guillaumin", "Charette", "Bazzani"]
    assert paper["title"] in model_card.PAPER
    assert "2410.08211" in paper["url"]
    assert paper["year"] == 2025


def test_links_of_the_pages_lead_somewhere():
    for page in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "config" / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), target


def test_tests_that_the_benchmarks_name_exist():
    page = (ROOT / "BENCHMARKS.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    assert named
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text("utf-8"), test


def test_the_ten_datasets_have_the_authors_number_of_steps():
    """open_clip's loader: each of 3 workers gives a third of the batches, rounded up."""
    configuration = Configuration(layers.defaults(project=None), {})
    for path in sorted((shipped.CONFIG / "datasets").glob("*.yaml")):
        if path.stem != "demo":
            n = configuration.dataset(path.stem)["split"]["counts"]["train"]
            section = configuration.method("latteclip", path.stem)["finetune"]
            size = section["batch_size"]
            ours = steps_per_epoch(n, size, section["steps_multiple_of"])
            assert ours == 3 * math.ceil(math.ceil(n / size) / 3)
            row = f"| {path.stem} | {n:,} | {n // size} | {math.ceil(n / size)} | {ours} |"
            assert row in STAGES.read_text("utf-8").splitlines()
