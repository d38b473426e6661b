"""The maths of the table over datasets and methods: means, spreads and gains."""

from collections.abc import Iterable, Sequence

import pandas as pd

from latteclip.evaluate.results import FIGURES, MARKS

COLUMNS = [
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


def summary(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Percentages per dataset and method, in the order in which they first occur.

    Args:
        runs: one row per run, with dataset, method, seed, marks and the FIGURES, which are
            fractions or null.
        baseline: the method that gains are over.

    Returns:
        The COLUMNS: marks of any seed, separated by spaces; of each metric its mean over seeds, and
        of acc1 its sample standard deviation (null for a single run) and its gain over the baseline
        on the same dataset (null where that was not run).
    """
    runs = runs.assign(**{name: pd.to_numeric(runs[name]) * 100 for name in FIGURES})
    groups = runs.groupby(["dataset", "method"], sort=False)
    table = pd.DataFrame(
        {
            "marks": groups["marks"].agg(union),
            "seeds": groups["seed"].nunique(),
            "acc1_mean": groups["acc1"].mean(),
            "acc1_std": groups["acc1"].std(),
            "acc5_mean": groups["acc5"].mean(),
            "mean_per_class_recall": groups["mean_per_class_recall"].mean(),
        }
    ).reset_index()
    base = table[table["method"] == baseline].set_index("dataset")["acc1_mean"]
    table["acc1_gain"] = table["acc1_mean"] - table["dataset"].map(base)
    table["baseline"] = baseline
    return table[COLUMNS]


def union(marks: Iterable[Sequence[str]]) -> str:
    """The marks of some runs, each once, in the order of MARKS."""
    found = {mark for run in marks for mark in run}
    return " ".join(mark for mark in MARKS if mark in found)


def split_by_labels(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of datasets of which an accuracy is known, and the other rows."""
    is_labelled = table.groupby("dataset")["acc1_mean"].transform("count") > 0
    return table[is_labelled], table[~is_labelled]


def known(value: float) -> float | None:
    """A figure of a table, or None where there is none."""
    return None if pd.isna(value) else float(value)


def by_dataset(table: pd.DataFrame) -> pd.DataFrame:
    """Of a summary, acc1 with one row per method and one column per dataset."""
    accuracies = table.pivot(index="method", columns="dataset", values="acc1_mean")
    return accuracies.loc[table["method"].unique(), table["dataset"].unique()]


def means_over_datasets(table: pd.DataFrame) -> tuple[dict[str, float], list[str]]:
    """Mean acc1 of each method over the datasets on which all of them have one; which those are.

    No means where there are fewer than two such datasets.
    """
    accuracies = by_dataset(table)
    complete = [str(name) for name in accuracies if accuracies[name].notna().all()]
    if len(complete) < 2:
        return {}, complete
    means = accuracies[complete].mean(axis=1)
    return {str(method): float(mean) for method, mean in means.items()}, complete
