"""Snakemake's own report of a run, which carries the table and the pages."""

import csv
import zipfile


def artefact(page, category, label):
    """Return the link of an artefact in its category."""
    page.get_by_text(category, exact=True).first.click()
    return page.get_by_role("row").filter(has_text=label).locator("a").first


def test_the_table_and_the_pages_are_in_it(finished, browser, tmp_path):
    run = finished.snakemake("--report", tmp_path / "report.zip", "--config", "seeds=1")
    assert run.returncode == 0, run.stdout
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        archive.extractall(tmp_path)
    report = (tmp_path / "report" / "report.html").as_uri()
    with browser.new_context(
        offline=True, viewport={"width": 1280, "height": 900}
    ) as context:
        page = context.new_page()
        page.goto(report)
        link = artefact(page, "Accuracy", "table of accuracies")
        with page.expect_download() as download:
            link.click()
        with download.value.path().open() as file:
            methods = [line["method"] for line in csv.DictReader(file)]
        assert methods == ["zero_shot", "flyp", "latteclip"]
        page.goto(report)
        artefact(page, "Datasets", "page of a dataset").click()
        page.frame_locator("iframe").get_by_text("Textures made by numpy").first.wait_for()
