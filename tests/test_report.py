import json

import pandas as pd
import pytest

from latteclip import report


def run(dataset, method, seed, acc1):
    return {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "acc1": acc1,
        "acc5": None if acc1 is None else acc1 + 0.2,
        "mean_per_class_recall": None if acc1 is None else acc1 - 0.1,
        "per_class": [],
    }


RUNS = [
    run("dtd", "zero_shot", 0, 0.4),
    run("dtd", "latteclip", 0, 0.5),
    run("dtd", "latteclip", 1, 0.7),
    run("dtd", "latteclip", 2, 0.6),
    run("aaa", "latteclip", 0, 0.3),
]


def table(runs=RUNS):
    return report.summary(pd.DataFrame(runs)).set_index(["dataset", "method"])


def test_rows_are_datasets_and_methods_in_the_order_of_the_runs():
    assert list(table().index) == [
        ("dtd", "zero_shot"),
        ("dtd", "latteclip"),
        ("aaa", "latteclip"),
    ]


def test_means_and_sample_spread_over_seeds_in_percent():
    row = table().loc["dtd", "latteclip"]
    assert row["seeds"] == 3
    assert row["acc1_mean"] == pytest.approx(60)
    assert row["acc1_std"] == pytest.approx(10)
    assert row["acc5_mean"] == pytest.approx(80)
    assert row["mean_per_class_recall"] == pytest.approx(50)


def test_a_single_run_has_no_spread():
    assert pd.isna(table().loc[("dtd", "zero_shot"), "acc1_std"])


def test_gain_is_over_zero_shot_of_the_same_dataset():
    gain = table()["acc1_gain"]
    assert gain["dtd", "latteclip"] == pytest.approx(20)
    assert gain["dtd", "zero_shot"] == 0
    assert pd.isna(gain["aaa", "latteclip"])  # no zero-shot run there


def test_runs_without_metrics_leave_blanks():
    row = table([run("x", "latteclip", 0, None), run("x", "zero_shot", 0, None)]).iloc[0]
    assert pd.isna(row["acc1_mean"])
    assert pd.isna(row["acc1_gain"])
    assert row["seeds"] == 1


def test_markdown_lines_up_and_reads_well():
    lines = report.markdown(report.summary(pd.DataFrame(RUNS))).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["dtd", "zero_shot", "1", "40.0", "", "60.0", "30.0"]
    assert cells[3] == ["dtd", "latteclip", "3", "60.0 +- 10.0", "+20.0", "80.0", "50.0"]
    assert cells[4] == ["aaa", "latteclip", "1", "30.0", "-", "50.0", "20.0"]


def test_summary_files_are_written(tmp_path):
    paths = []
    for number, values in enumerate(RUNS):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(values))
        paths.append(str(path))
    report.summarize(paths, str(tmp_path / "s.csv"), str(tmp_path / "s.md"))
    written = pd.read_csv(tmp_path / "s.csv")
    assert list(written.columns) == [
        "dataset",
        "method",
        "seeds",
        "acc1_mean",
        "acc1_std",
        "acc1_gain",
        "acc5_mean",
        "mean_per_class_recall",
    ]
    assert written["acc1_mean"].tolist() == [40, 60, 30]
    assert "latteclip" in (tmp_path / "s.md").read_text()
