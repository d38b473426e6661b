import json
from pathlib import Path

import pandas as pd
from support import records

from latteclip.config.keys import TableSection
from latteclip.core.metadata import FLAGS
from latteclip.evaluate.summary import summary
from latteclip.labels.fusion_report import PersonAnswers, write_fusion_report
from latteclip.report import summarize
from latteclip.report.index_results import IndexSettings


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
        "per_class": [],
    }


MARKED = [
    run("dtd", "zero_shot", 0, 0.4),
    run("dtd", "latteclip", 0, 0.5),
    run("dtd", "latteclip", 1, 0.7),
    run("dtd", "latteclip", 2, 0.6),
    run("aaa", "latteclip", 0, 0.3),
    run("dtd", "flyp_supervised", 0, 0.9, ["supervised"]),
    run("dtd", "latteclip_fused", 0, 0.8, ["ours"]),
    run("dtd", "latteclip_fused", 1, 0.6, ["collapsed", "ours"]),
]


def test_the_table_lines_up_and_marks_are_explained_below_it():
    text = summarize.accuracy_table(summary(MARKED, "zero_shot"), "zero_shot")
    lines = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines[:7]}) == 1
    assert cells[0][3:5] == ["acc1", "over zero-shot"]
    assert cells[2] == ["dtd", "zero_shot", "1", "40.0", "", "60.0", "30.0"]
    assert cells[3] == ["dtd", "latteclip", "3", "60.0 +- 10.0", "+20.0", "80.0", "50.0"]
    assert cells[4] == ["aaa", "latteclip", "1", "30.0", "-", "50.0", "20.0"]
    names = ["flyp_supervised (supervised)", "latteclip_fused (ours, collapsed)"]
    assert [row[1] for row in cells[5:7]] == names
    flags = ("supervised", "ours", "collapsed")
    assert lines[7:] == ["", *(f"- {mark}: {FLAGS[mark]}." for mark in flags)]


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
    settings = IndexSettings(table=TableSection(baseline="zero_shot"))
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


def test_several_datasets_make_the_paper_s_table_with_its_published_mean(tmp_path):
    accuracies = {"dtd": (0.4, 0.6), "mine": (0.1, 0.9), "eurosat": (0.2, 0.25)}
    runs = [
        run(dataset, method, 0, acc1)
        for dataset, pair in accuracies.items()
        for method, acc1 in zip(("zero_shot", "latteclip"), pair, strict=True)
    ]
    runs.append(run("sun397", "latteclip", 0, 0.3))
    text = summarize.dataset_table(summary(runs, "zero_shot"))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
    ]
    assert rows[0] == ["acc1", "dtd", "mine", "eurosat", "sun397", "mean"]
    assert rows[2] == ["zero_shot", "40.0", "10.0", "20.0", "-", "23.3"]
    assert rows[3] == ["latteclip", "60.0", "90.0", "25.0", "30.0", "58.3"]
    # 20 points on dtd, 5 on eurosat, but not those on mine.
    assert "+12.50" in text and "+4.74" in text
    assert summarize.dataset_table(summary(runs[2:3], "zero_shot")) == ""
    table_of_marked = summarize.dataset_table(summary(MARKED, "zero_shot"))
    assert "\n".join(summarized(tmp_path)[1]).endswith(table_of_marked)
