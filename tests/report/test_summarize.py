import json
from pathlib import Path

import pandas as pd
from support import records
from support.pages import write_audit

from latteclip.config.keys import TableSection
from latteclip.core.tables import FLAGS
from latteclip.labels.fusion_report import PersonAnswers, write_fusion_report
from latteclip.report import summarize


def run(dataset, method, seed, acc1, flags=()):
    return {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "flags": list(flags),
        "images": 10,
        "acc1": acc1,
        "acc5": None if acc1 is None else acc1 + 0.2,
        "mean_per_class_recall": None if acc1 is None else acc1 - 0.1,
    }


MARKED = [
    run("dtd", "zero_shot", 0, 0.4),
    run("dtd", "latteclip", 0, 0.5),
    run("dtd", "latteclip", 1, 0.7),
    run("dtd", "latteclip", 2, 0.6),
    run("aaa", "latteclip", 0, None),
    run("dtd", "flyp_supervised", 0, 0.9, ["supervised"]),
    run("dtd", "latteclip_fused", 0, 0.8, ["ours"]),
    run("dtd", "latteclip_fused", 1, 0.6, ["collapsed", "ours"]),
]


def write_marked(folder):
    """The files of MARKED."""
    paths = []
    for number, values in enumerate(MARKED):
        path = folder / f"{number}.json"
        path.write_text(json.dumps(values))
        paths.append(str(path))
    return paths


def summarized(folder, *args, **options):
    """The table, its texts as they are, and the lines of the Markdown."""
    outputs = csv, text, _ = [str(folder / f"s.{kind}") for kind in ("csv", "md", "html")]
    files = [*args, *[[]] * (2 - len(args))]
    settings = summarize.IndexSettings(table=TableSection(baseline="zero_shot"))
    summarize.summarize(write_marked(folder), *files, settings, *outputs, **options)
    written = pd.read_csv(csv, dtype=str, keep_default_na=False)
    return written, Path(text).read_text().splitlines()


def test_labels_that_answers_checked_stand_below_the_table(tmp_path):
    checked = records.checked([], answers=50, value=0.91, low=0.83, high=0.96)
    reports = []
    for dataset, found in (("dtd", checked), ("other", None)):
        reports.append(str(tmp_path / dataset / "fused_labels.json"))
        answers = PersonAnswers({}, found)
        write_fusion_report(reports[-1], records.fusion(answers=answers))
    _, lines = summarized(tmp_path, fusion_reports_paths=reports)
    [line] = [line for line in lines if line.startswith("- labels")]
    assert all(word in line for word in ("dtd", "50 answers", "91.0", "83.0", "96.0"))


def test_the_table_lines_up_and_marks_are_explained_below_it(tmp_path):
    audit = write_audit(tmp_path, "aaa", ["latteclip"], sentence="It helped.")
    _, lines = summarized(tmp_path, [], [audit])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines[:7]}) == 1
    assert cells[0][3:5] == ["acc1", "over zero-shot"]
    assert cells[2][:7] == ["dtd", "zero_shot", "1", "40.0", "", "60.0", "30.0"]
    spread = ["dtd", "latteclip", "3", "60.0 +- 10.0", "+20.0", "80.0", "50.0", "-"]
    assert cells[3] == spread
    unlabelled = ["aaa", "latteclip", "1", "-", "-", "-", "-", "41.0 (30.0 to 62.0)"]
    assert cells[4] == unlabelled
    names = ["flyp_supervised (supervised)", "latteclip_fused (ours, collapsed)"]
    assert [row[1] for row in cells[5:7]] == names
    flags = ("supervised", "ours", "collapsed")
    assert lines[7:11] == ["", *(f"- {mark}: {FLAGS[mark]}." for mark in flags)]
    assert lines[12] == "- audited: aaa, 40 of 53 test images: It helped."
