"""Means, spreads and gains over datasets and methods."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core import tables
from latteclip.core.tables import FLAGS, IndexMetadata
from latteclip.evaluate.results import (
    FIGURES,
    Audit,
    Selection,
    read_audit,
    read_metrics,
    read_selection,
)

Paths = Iterable[str | Path]


# Metrics, and of each dataset the choice of a model and the audit.
Results = tuple[list[dict[str, Any]], dict[str, Selection], dict[str, Audit]]


def read_results(
    metrics_paths: Paths,
    selection_paths: Paths,
    audit_paths: Paths,
    others: str | None = None,
) -> Results:
    """Read the metrics of a run, and of each dataset the choice of a model and the audit.

    Those of other datasets in `others`, a folder of earlier results, are added.
    """
    metrics = [*map(read_metrics, metrics_paths)]
    selections = [*selection_paths]
    audits = [*audit_paths]
    here = {values["dataset"] for values in metrics}
    # Where a storage keeps the results, the folder need not be there.
    for folder in sorted(Path(others).glob("*")) if others else []:
        paths = sorted(folder.glob("*/seed*/metrics.json"))
        index = folder / "images.parquet"
        if folder.name in here or not paths:
            continue
        if index.is_file() and tables.read_metadata(index, IndexMetadata).limit is not None:
            continue  # a limited run has its own table
        metrics += map(read_metrics, paths)
        selections += folder.glob("selection.json")
        audits += folder.glob("audit.json")
    scored = {audit.dataset: audit for audit in map(read_audit, audits)}
    chosen = {selection.dataset: selection for selection in map(read_selection, selections)}
    return metrics, chosen, scored


def summary(runs: Sequence[Mapping[str, Any]], baseline: str) -> pd.DataFrame:
    """Return percentages by dataset and method, in the order in which they first occur.

    Marks are those of any seed, separated by spaces. Metrics are means over seeds. Of acc1 there
    are the sample standard deviation and the gain over a baseline on the same dataset.
    """
    table = pd.DataFrame(runs)
    table = table.assign(**{name: pd.to_numeric(table[name]) * 100 for name in FIGURES})
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


def means_over_datasets(table: pd.DataFrame) -> tuple[dict[str, float], list[str]]:
    """Return mean acc1 of each method over the datasets with an accuracy of all, and their names.

    Without two such datasets there are no means.
    """
    accuracies = table.pivot(index="method", columns="dataset", values="acc1_mean")
    complete = accuracies.dropna(axis=1)
    means = complete.mean(axis=1) if len(complete.columns) > 1 else pd.Series()
    return dict(means), [*complete]
