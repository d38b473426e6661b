"""Snakemake's own report of a run, which carries the table and the pages."""

import csv
import zipfile

import pytest


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    """The unpacked `snakemake --report report.zip`."""
    folder = tmp_path_factory.mktemp("report")
    run = finished.snakemake("--report", folder / "report.zip", "--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    with zipfile.ZipFile(folder / "report.zip") as archive:
        archive.extractall(folder)
    return folder / "report" / "report.html"


@pytest.fixture
def page(browser, report):
    """The report in a browser without a network."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(report.as_uri())
    yield page
    context.close()


def artefact(page, category, label):
    """The row of an artefact in its category."""
    page.get_by_text(category, exact=True).first.click()
    return page.get_by_role("row").filter(has_text=label)


def test_the_table_is_in_it(page):
    row = artefact(page, "Accuracy", "table of accuracies")
    with page.expect_download() as download:
        row.locator("a").first.click()
    with download.value.path().open() as file:
        methods = [line["method"] for line in csv.DictReader(file)]
    assert methods == ["zero_shot", "flyp", "latteclip"]


@pytest.mark.parametrize(
    ("category", "label", "heading"),
    [
        ("Datasets", "page of a dataset", "Textures made by numpy"),
    ],
)
def test_the_pages_are_shown_inside_it(page, category, label, heading):
    artefact(page, category, label).locator("a").first.click()
    page.frame_locator("iframe").get_by_text(heading).first.wait_for()
