"""One table over datasets and methods from the metrics of every run."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from latteclip.files import write_text

METRICS = ["acc1", "acc5", "mean_per_class_recall"]


def summarize(metrics_paths: Sequence[str], csv_output: str, markdown_output: str) -> None:
    """Write a row per dataset and method: means and spreads over seeds, gain over zero-shot."""
    runs = pd.DataFrame(
        [json.loads(Path(path).read_text(encoding="utf-8")) for path in metrics_paths]
    )
    table = summary(runs)
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    write_text(markdown_output, markdown(table))


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Percentages per dataset and method, in the order in which they first occur.

    Args:
        runs: one row a run, with dataset, method, seed and the METRICS as fractions or null.

    Returns:
        dataset, method, seeds, and for each metric its mean and, for acc1, its sample standard
        deviation over seeds (null for a single run) and its gain over zero_shot of the same
        dataset (null where that was not run).
    """
    runs = runs.assign(**{name: pd.to_numeric(runs[name]) * 100 for name in METRICS})
    groups = runs.groupby(["dataset", "method"], sort=False)
    table = pd.DataFrame(
        {
            "seeds": groups["seed"].nunique(),
            "acc1_mean": groups["acc1"].mean(),
            "acc1_std": groups["acc1"].std(),
            "acc5_mean": groups["acc5"].mean(),
            "mean_per_class_recall": groups["mean_per_class_recall"].mean(),
        }
    ).reset_index()
    zero_shot = table[table["method"] == "zero_shot"].set_index("dataset")["acc1_mean"]
    gain = table["acc1_mean"] - table["dataset"].map(zero_shot)
    table.insert(5, "acc1_gain", gain)
    return table


def markdown(table: pd.DataFrame) -> str:
    """The summary for people: a Markdown table that also reads well in a terminal."""
    header = ["dataset", "method", "seeds", "acc1", "over zero-shot", "acc5", "per-class recall"]
    rows: list[list[str]] = [
        [
            row["dataset"],
            row["method"],
            str(row["seeds"]),
            _number(row["acc1_mean"])
            + ("" if pd.isna(row["acc1_std"]) else f" +- {row['acc1_std']:.1f}"),
            "" if row["method"] == "zero_shot" else _number(row["acc1_gain"], signed=True),
            _number(row["acc5_mean"]),
            _number(row["mean_per_class_recall"]),
        ]
        for row in table.to_dict("records")
    ]
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    left = [True, True] + [False] * (len(header) - 2)

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(cells, widths, left, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [
        ("-" * width) if is_left else ("-" * (width - 1) + ":")
        for width, is_left in zip(widths, left, strict=True)
    ]
    return "\n".join([line(header), line(rule), *map(line, rows)]) + "\n"


def _number(value: float, signed: bool = False) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:+.1f}" if signed else f"{value:.1f}"
