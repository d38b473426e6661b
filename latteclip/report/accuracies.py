"""Accuracies of methods over seeds, and their gains, from the metrics of runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from latteclip.core.tables import FLAGS
from latteclip.evaluate.results import FIGURES


def summary(runs: Sequence[Mapping[str, Any]], baseline: str) -> pd.DataFrame:
    """Return percentages by dataset and method, in the order in which they first occur.

    Marks are those of any seed, separated by spaces. Metrics are means over seeds. Of acc1 there
    are the sample standard deviation and the gain over a baseline on the same dataset.
    """
    table = pd.DataFrame(runs)
    table = table.assign(
        **{name: pd.to_numeric(table[name]) * 100 for name in FIGURES}
    )
    table = table.groupby(["dataset", "method"], sort=False, as_index=False).agg(
        flags=("flags", union),
        seeds=("seed", "nunique"),
        acc1_mean=("acc1", "mean"),
        acc1_std=("acc1", "std"),
        acc5_mean=("acc5", "mean"),
        mean_per_class_recall=("mean_per_class_recall", "mean"),
    )
    base = table[table["method"] == baseline].set_index("dataset")["acc1_mean"]
    gain = table["acc1_mean"] - table["dataset"].map(base)
    return table.assign(acc1_gain=gain, baseline=baseline)


def union(flags: Iterable[Sequence[str]]) -> str:
    """Return the flags of some runs, each once, in the order of FLAGS."""
    used = {mark for run in flags for mark in run}
    return " ".join(mark for mark in FLAGS if mark in used)
