import math
import re

import generate_docs
import pytest
import yaml
from support.tiny import ROOT

from latteclip import __version__
from latteclip.config import layers
from latteclip.config.configuration import Configuration
from latteclip.config.sections.captioner import CaptionerSection
from latteclip.config.sections.downloads import DownloadSection
from latteclip.config.sections.finetune import FinetuneSection
from latteclip.config.sections.split import SplitSection
from latteclip.config.sections.switches import SwitchesSection
from latteclip.deploy import export
from latteclip.train.settings import steps_per_epoch


@pytest.mark.parametrize("path", generate_docs.files(), ids=lambda path: path.name)
def test_what_is_written_from_the_sections_is_up_to_date(path):
    assert path.read_text("utf-8") == generate_docs.files()[path], "run `make docs`"


def test_every_key_is_described_in_a_table():
    text = generate_docs.PAGE.read_text("utf-8")
    tables = re.findall(r"<!-- keys: \w+ -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    assert len(tables) == 3
    rows = "".join(tables)
    sections = (
        CaptionerSection,
        FinetuneSection,
        SplitSection,
        SwitchesSection,
        DownloadSection,
    )
    for section in sections:
        for key, field in section.model_fields.items():
            assert f".{key}`" in rows
            assert field.description.replace("<", "&lt;") in rows


def test_the_citation_is_that_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Cao", "Jaritz", "Guillaumin", "Charette", "Bazzani"]
    assert paper["title"] in (export.TEMPLATES / "model_card.md").read_text("utf-8")
    assert "2410.08211" in paper["url"]
    assert paper["year"] == 2025


PAGES = (
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    ROOT / "config" / "README.md",
)


def anchors(page):
    """Return the anchors of the headings of a page, as the site and GitHub form them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-")
        for heading in headings
    }


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?", page.read_text("utf-8"))
        for name, anchor in links:
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {name}"
            if anchor:
                assert anchor in anchors(target), f"{page.name}: {name}#{anchor}"


def test_the_ten_datasets_have_the_authors_number_of_steps():
    """open_clip's loader: each of 3 workers gives a third of the batches, rounded up."""
    configuration = Configuration(layers.defaults(project=None), {})
    for path in sorted((layers.CONFIG / "datasets").glob("*.yaml")):
        if path.stem != "demo":
            n = configuration.dataset(path.stem)["split"]["counts"]["train"]
            section = configuration.method("latteclip", path.stem)["finetune"]
            size = section["batch_size"]
            steps = steps_per_epoch(n, size)
            assert steps == 3 * math.ceil(math.ceil(n / size) / 3)
