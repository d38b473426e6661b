import pandas as pd
import pytest
from support.runs_of_methods import MARKED, RUNS, run

from latteclip.evaluate.summary import summary


def table(runs=RUNS, baseline="zero_shot"):
    return summary(pd.DataFrame(runs), baseline).set_index(["dataset", "method"])


def test_means_and_sample_spread_over_seeds_in_percent():
    row = table().loc["dtd", "latteclip"]
    assert row["seeds"] == 3
    assert row["acc1_mean"] == pytest.approx(60)
    assert row["acc1_std"] == pytest.approx(10)
    assert row["acc5_mean"] == pytest.approx(80)
    assert row["mean_per_class_recall"] == pytest.approx(50)
    assert pd.isna(table().loc[("dtd", "zero_shot"), "acc1_std"])


def test_gain_is_over_the_baseline_on_the_same_dataset():
    gain = table()["acc1_gain"]
    assert set(table()["baseline"]) == {"zero_shot"}
    assert gain["dtd", "latteclip"] == pytest.approx(20)
    assert gain["dtd", "zero_shot"] == 0
    assert pd.isna(gain["aaa", "latteclip"])  # no zero-shot run there


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
