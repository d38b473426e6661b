import json
from pathlib import Path

import pytest
from support.pages import Page, write_audit, write_metrics

from latteclip.config.keys import TableSection
from latteclip.report import summarize as index


@pytest.fixture
def compared(tmp_path):
    paths = [
        write_metrics(tmp_path, "dtd", "zero_shot", 0, 0.50),
        write_metrics(tmp_path, "dtd", "latteclip", 0, 0.56),
        write_metrics(tmp_path, "dtd", "latteclip", 1, 0.58),
        write_metrics(tmp_path, "dtd", "flyp_supervised", 0, 0.90, ["supervised"]),
        write_metrics(tmp_path, "sun397", "zero_shot", 0, 0.60),
        write_metrics(tmp_path, "sun397", "latteclip", 0, 0.61),
        write_metrics(tmp_path, "sun397", "flyp_supervised", 0, 0.80, ["supervised"]),
        write_metrics(tmp_path, "mine", "latteclip", 0, None),
    ]
    settings = index.IndexSettings(
        table=TableSection(),
        reports={"dtd": "dtd/report.html"},
        titles={"dtd": "<u>Textures</u>"},
    )
    chosen = tmp_path / "selection.json"
    told = {
        "dataset": "dtd",
        "method": "zero_shot",
        "seed": 0,
        "reason": "Nothing <b>beat</b> it.",
    }
    chosen.write_text(json.dumps(told))
    audits = [write_audit(tmp_path, "mine", ["latteclip"])]
    earlier = tmp_path / "results" / "earlier" / "latteclip" / "seed0"
    earlier.mkdir(parents=True)
    run = Path(write_metrics(tmp_path, "earlier", "latteclip", 0, 0.4))
    run.rename(earlier / "metrics.json")
    output = str(tmp_path / "index.html")
    others = str(tmp_path / "results")
    results = index.read_results(paths, [str(chosen)], audits, others)
    index.index_results(results, settings, output)
    text = (tmp_path / "index.html").read_text()
    return Page(text), text


def test_the_index_has_one_row_per_dataset_and_one_column_per_method(compared):
    page, text = compared
    table = page.tables["comparison"]
    names = [cell[0].split()[0] for cell in table[0][2:]]
    assert names == ["zero_shot", "latteclip", "flyp_supervised"]
    names = [row[0][0].split("<")[0].strip() for row in table[1:]]
    assert names == ["dtd", "sun397", "mine", "earlier", "mean"]
    assert [float(cell[1]) for cell in table[1][2:]] == pytest.approx([50, 57, 90])
    assert table[1][3][0].split() == ["best:", "57.0", "±", "1.4", "+7.0"]
    assert "best" not in table[1][4][0]  # it reads labels
    assert [cell[0].strip().split(" ")[0] for cell in table[4][2:]] == ["–", "best:", "–"]  # noqa: RUF001
    assert [cell[0] for cell in table[5][2:]] == ["55.0", "59.0", "85.0"]
    assert 'href="dtd/report.html"' in text
    assert "<u>Textures</u>" in page.sections[""]
    assert ("u", {}) not in page.elements


def test_a_star_marks_the_model_that_was_chosen_and_below_it_says_why(compared):
    page, text = compared
    table = page.tables["comparison"]
    assert table[1][2][0].split() == ["★", "50.0"]
    assert [cell[0] for row in table[1:] for cell in row if "★" in cell[0]] == [
        table[1][2][0]
    ]
    assert "Nothing <b>beat</b> it." in page.sections[""]
    assert ("b", {}) not in page.elements
    assert "has a star" in text


def test_an_audit_stands_where_a_person_answered(compared):
    page, _ = compared
    cell = page.tables["comparison"][3][3][0]
    assert " ".join(cell.split()) == "no labels by answers: 41.0 (30.0 to 62.0)"
    assert "mine: It <i>helped</i>." in page.sections[""]
    assert ("i", {}) not in page.elements
