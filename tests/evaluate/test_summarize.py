import json

import pandas as pd
import pytest

from latteclip.evaluate import summarize


def run(dataset, method, seed, acc1, marks=()):
    return {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "marks": list(marks),
        "images": 10,
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
MARKED = [
    *RUNS,
    run("dtd", "flyp_supervised", 0, 0.9, ["supervised"]),
    run("dtd", "latteclip_fused", 0, 0.8, ["ours"]),
    run("dtd", "latteclip_fused", 1, 0.6, ["collapsed", "ours"]),
]


def table(runs=RUNS, baseline="zero_shot"):
    return summarize.summary(pd.DataFrame(runs), baseline).set_index(["dataset", "method"])


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


def test_gain_is_over_the_baseline_on_the_same_dataset():
    gain = table()["acc1_gain"]
    assert set(table()["baseline"]) == {"zero_shot"}
    assert gain["dtd", "latteclip"] == pytest.approx(20)
    assert gain["dtd", "zero_shot"] == 0
    assert pd.isna(gain["aaa", "latteclip"])  # no zero-shot run there


def test_the_baseline_may_be_any_method():
    over_latteclip = table(baseline="latteclip")
    assert over_latteclip.loc["dtd", "zero_shot"]["acc1_gain"] == pytest.approx(-20)
    assert over_latteclip.loc["aaa", "latteclip"]["acc1_gain"] == 0
    assert set(over_latteclip["baseline"]) == {"latteclip"}


def test_marks_are_those_of_any_seed():
    marks = table(MARKED)["marks"]
    assert marks["dtd", "latteclip"] == ""
    assert marks["dtd", "flyp_supervised"] == "supervised"
    assert marks["dtd", "latteclip_fused"] == "ours collapsed"


def test_runs_without_metrics_leave_blanks():
    row = table([run("x", "latteclip", 0, None), run("x", "zero_shot", 0, None)]).iloc[0]
    assert pd.isna(row["acc1_mean"])
    assert pd.isna(row["acc1_gain"])
    assert row["seeds"] == 1


def markdown(runs, baseline):
    """Lines of the Markdown, and the cells of each."""
    text = summarize.markdown(summarize.summary(pd.DataFrame(runs), baseline), baseline)
    lines = text.splitlines()
    return lines, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_markdown_lines_up_and_reads_well():
    lines, cells = markdown(RUNS, "zero_shot")
    assert len({len(line) for line in lines}) == 1
    assert cells[0][3:5] == ["acc1", "over zero-shot"]
    assert cells[2] == ["dtd", "zero_shot", "1", "40.0", "", "60.0", "30.0"]
    assert cells[3] == ["dtd", "latteclip", "3", "60.0 +- 10.0", "+20.0", "80.0", "50.0"]
    assert cells[4] == ["aaa", "latteclip", "1", "30.0", "-", "50.0", "20.0"]


def test_markdown_names_the_baseline_and_leaves_its_own_gain_blank():
    _, cells = markdown(RUNS, "latteclip")
    assert cells[0][4] == "over latteclip"
    assert [row[4] for row in cells[2:]] == ["-20.0", "", ""]


def test_marks_follow_the_method_s_name_and_are_explained_below_the_table():
    lines, cells = markdown(MARKED, "zero_shot")
    assert [row[1] for row in cells[2:7]] == [
        "zero_shot",
        "latteclip",
        "latteclip",
        "flyp_supervised (supervised)",
        "latteclip_fused (ours, collapsed)",
    ]
    assert len({len(line) for line in lines[:7]}) == 1
    assert lines[7] == ""
    assert lines[8:] == [f"- {mark}: {summarize.MARKS[mark]}." for mark in summarize.MARKS]


def test_a_mark_that_does_not_occur_is_not_explained():
    lines, _ = markdown(MARKED[:-2], "zero_shot")
    assert [line.split(":")[0] for line in lines[7:]] == ["- supervised"]


def test_summary_files_are_written(tmp_path):
    paths = []
    for number, values in enumerate(MARKED):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(values))
        paths.append(str(path))
    summarize.summarize(paths, "zero_shot", str(tmp_path / "s.csv"), str(tmp_path / "s.md"))
    written = pd.read_csv(tmp_path / "s.csv")
    assert list(written.columns) == [
        "dataset",
        "method",
        "marks",
        "seeds",
        "acc1_mean",
        "acc1_std",
        "acc1_gain",
        "baseline",
        "acc5_mean",
        "mean_per_class_recall",
    ]
    assert written["acc1_mean"].tolist() == [40, 60, 30, 90, 70]
    assert written["marks"].fillna("").tolist() == ["", "", "", "supervised", "ours collapsed"]
    assert "latteclip_fused (ours, collapsed)" in (tmp_path / "s.md").read_text()


def several():
    return summarize.summary(
        pd.DataFrame(
            [
                run("dtd", "zero_shot", 0, 0.4),
                run("dtd", "latteclip", 0, 0.5),
                run("dtd", "latteclip", 1, 0.7),
                run("mine", "zero_shot", 0, 0.1),
                run("mine", "latteclip", 0, 0.9),
                run("eurosat", "zero_shot", 0, 0.2),
                run("eurosat", "latteclip", 0, 0.25),
                run("sun397", "latteclip", 0, 0.3),
            ]
        ),
        "zero_shot",
    )


def test_several_datasets_make_the_paper_s_table():
    text = summarize.across(several())
    table = text[text.index("| acc1 ") :].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[:4]]
    assert cells[0] == ["acc1", "dtd", "mine", "eurosat", "sun397", "mean"]
    assert cells[2] == ["zero_shot", "40.0", "10.0", "20.0", "-", "23.3"]
    assert cells[3] == ["latteclip", "60.0", "90.0", "25.0", "30.0", "58.3"]
    assert "The mean is over dtd, mine, eurosat, on which all methods were run." in table


def test_our_mean_stands_beside_the_published_one():
    """Over the paper's datasets alone: 20 points on dtd, 5 on eurosat, but not those on mine."""
    assert summarize.gain_on_paper_datasets(several()) == (pytest.approx(12.5), 2)
    text = summarize.across(several())
    assert "mean over 2 of the paper's 10 datasets: +12.50; published, over all: +4.74 (" in text


def test_without_the_paper_s_datasets_nothing_is_compared():
    one = summarize.summary(pd.DataFrame([run("mine", "zero_shot", 0, 0.4)]), "zero_shot")
    assert summarize.gain_on_paper_datasets(one) == (None, 0)
    assert summarize.across(one) == ""  # and one dataset needs no second table
