"""The table and the page over all datasets and methods."""

import json
from pathlib import Path

import pandas as pd
import pytest
from support import records
from support.pages import Page, write_audit, write_metrics

from latteclip.config.keys import TableSection
from latteclip.core.tables import FLAGS
from latteclip.labels.fusion_report import PersonAnswers, write_fusion_report
from latteclip.report import summarize


def summarized(folder, *args, **options):
    """The table, the lines of the Markdown, and the page."""
    outputs = csv, text, page = [
        str(folder / f"s.{kind}") for kind in ("csv", "md", "html")
    ]
    titles = {"dtd": "<u>Textures</u>"}
    settings = summarize.IndexSettings(
        table=TableSection(), reports={"dtd": "dtd/report.html"}, titles=titles
    )
    summarize.summarize(*args, settings, *outputs, **options)
    written = pd.read_csv(csv, dtype=str, keep_default_na=False)
    return written, Path(text).read_text().splitlines(), Page(Path(page).read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three datasets and one of an earlier run, of which one was chosen for, one audited."""
    folder = tmp_path_factory.mktemp("summary")
    paths = [
        write_metrics(folder, "dtd", "zero_shot", 0, 0.50),
        write_metrics(folder, "dtd", "latteclip", 0, 0.56),
        write_metrics(folder, "dtd", "latteclip", 1, 0.58, ["collapsed", "ours"]),
        write_metrics(folder, "dtd", "flyp_supervised", 0, 0.90, ["supervised"]),
        write_metrics(folder, "sun397", "zero_shot", 0, 0.60),
        write_metrics(folder, "sun397", "latteclip", 0, 0.61),
        write_metrics(folder, "sun397", "flyp_supervised", 0, 0.80, ["supervised"]),
        write_metrics(folder, "mine", "latteclip", 0, None),
    ]
    chosen = {"dataset": "dtd", "method": "zero_shot", "seed": 0}
    selection = folder / "selection.json"
    selection.write_text(json.dumps(chosen | {"reason": "Nothing <b>beat</b> it."}))
    audits = [write_audit(folder, "mine", ["latteclip"])]
    earlier = folder / "results" / "earlier" / "latteclip" / "seed0"
    earlier.mkdir(parents=True)
    run = Path(write_metrics(folder, "earlier", "latteclip", 0, 0.4))
    run.rename(earlier / "metrics.json")
    others = str(folder / "results")
    return summarized(folder, paths, [str(selection)], audits, others=others)


def test_the_page_has_a_row_of_each_dataset_and_a_column_of_each_method(written):
    *_, page = written
    table = page.tables["comparison"]
    names = [cell[0].split()[0] for cell in table[0][2:]]
    assert names == ["zero_shot", "latteclip", "flyp_supervised"]
    names = [row[0][0].split("<")[0].strip() for row in table[1:]]
    assert names == ["dtd", "sun397", "mine", "earlier", "mean"]
    assert [float(cell[1]) for cell in table[1][2:]] == pytest.approx([50, 57, 90])
    assert table[1][3][0].split() == ["best:", "57.0", "±", "1.4", "+7.0"]
    assert "best" not in table[1][4][0]  # it reads labels
    assert [cell[0] for cell in table[5][2:]] == ["55.0", "59.0", "85.0"]
    assert ("a", {"href": "dtd/report.html"}) in page.elements
    stars = [cell[0].split() for row in table[1:] for cell in row if "★" in cell[0]]
    assert stars == [["★", "50.0"]]
    audited = " ".join(table[3][3][0].split())
    assert audited == "no labels by answers: 41.0 (30.0 to 62.0)"
    for text in ("<u>Textures</u>", "Nothing <b>beat</b> it.", "mine: It <i>helped</i>."):
        assert text in page.sections[""]
    assert not {"u", "b", "i"} & {tag for tag, _ in page.elements}


def test_the_table_lines_up_and_marks_are_explained_below_it(written):
    table, lines, _ = written
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines[:10]}) == 1
    assert cells[0][3:5] == ["acc1", "over zero-shot"]
    first = ["dtd", "zero_shot ★", "1", "50.0", "", "50.0", "50.0", "-"]
    assert cells[2] == first
    assert cells[3][1:5] == ["latteclip (ours, collapsed)", "2", "57.0 +- 1.4", "+7.0"]
    assert cells[8] == ["mine", "latteclip", "1", *["-"] * 4, "41.0 (30.0 to 62.0)"]
    notes = [f"- {mark}: {FLAGS[mark]}." for mark in ("supervised", "ours", "collapsed")]
    start = lines.index(notes[0])
    assert lines[start : start + 3] == notes
    assert "- ★ dtd: Nothing <b>beat</b> it." in lines
    assert "- audited: mine, 40 of 53 test images: It <i>helped</i>." in lines
    assert list(table["chosen"]) == ["0", *[""] * 7]


def test_labels_that_answers_checked_stand_below_the_table(tmp_path):
    checked = records.checked([], answers=50, value=0.91, low=0.83, high=0.96)
    reports = []
    for dataset, found in (("dtd", checked), ("other", None)):
        reports.append(str(tmp_path / dataset / "fused_labels.json"))
        answers = PersonAnswers({}, found)
        write_fusion_report(reports[-1], records.fusion(answers=answers))
    paths = [write_metrics(tmp_path, "dtd", "zero_shot", 0, 0.5)]
    _, lines, _ = summarized(tmp_path, paths, [], [], fusion_reports_paths=reports)
    [line] = [line for line in lines if line.startswith("- labels")]
    assert all(word in line for word in ("dtd", "50 answers", "91.0", "83.0", "96.0"))
