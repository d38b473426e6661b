"""One table over datasets and methods from the metrics of every run."""

from collections.abc import Iterable, Sequence

import pandas as pd

from latteclip.core.files import write_text
from latteclip.core.json_files import FIGURES, read_metrics
from latteclip.evaluate import published
from latteclip.evaluate.metrics import MARKS

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


def summarize(
    metrics_paths: Sequence[str], baseline: str, csv_output: str, markdown_output: str
) -> None:
    """Write a row per dataset and method: means and spreads over seeds, gain over the baseline.

    Raises:
        UserError: a metrics file is missing or broken.
    """
    runs = pd.DataFrame([read_metrics(path) for path in metrics_paths])
    table = summary(runs, baseline)
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    write_text(markdown_output, markdown(table, baseline) + across(table))


def summary(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Percentages per dataset and method, in the order in which they first occur.

    Args:
        runs: one row a run, with dataset, method, seed, marks and the FIGURES as fractions or null.
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
            "marks": groups["marks"].agg(_union),
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


def _union(marks: Iterable[Sequence[str]]) -> str:
    """The marks of some runs, each once, in the order of MARKS."""
    found = {mark for run in marks for mark in run}
    return " ".join(mark for mark in MARKS if mark in found)


def known(value: float) -> float | None:
    """A figure of a table, or None where there is none."""
    return None if pd.isna(value) else float(value)


def markdown(table: pd.DataFrame, baseline: str) -> str:
    """The summary for people: a Markdown table that also reads well in a terminal.

    Marks follow the method's name, and below the table it says what they mean.
    """
    gain = f"over {baseline.replace('_', '-')}"
    header = ["dataset", "method", "seeds", "acc1", gain, "acc5", "per-class recall"]
    rows: list[list[str]] = [
        [
            row["dataset"],
            row["method"] + (f" ({', '.join(row['marks'].split())})" if row["marks"] else ""),
            str(row["seeds"]),
            _number(row["acc1_mean"])
            + ("" if pd.isna(row["acc1_std"]) else f" +- {row['acc1_std']:.1f}"),
            "" if row["method"] == baseline else _number(row["acc1_gain"], signed=True),
            _number(row["acc5_mean"]),
            _number(row["mean_per_class_recall"]),
        ]
        for row in table.to_dict("records")
    ]
    used = _union(table["marks"].str.split()).split()
    notes = ["", *(f"- {mark}: {MARKS[mark]}." for mark in used)] if used else []
    return "\n".join([*_lines(header, rows, n_left=2), *notes]) + "\n"


def across(table: pd.DataFrame) -> str:
    """A table of methods by datasets, where there are several, and the paper's mean beside ours."""
    lines: list[str] = []
    accuracies = by_dataset(table)
    means, complete = means_over_datasets(table)
    if len(accuracies.columns) > 1:
        rows = [
            [method, *map(_number, row), _number(means.get(method, float("nan")))]
            for method, row in zip(accuracies.index, accuracies.to_numpy(), strict=True)
        ]
        lines += ["", *_lines(["acc1", *accuracies.columns, "mean"], rows, n_left=1)]
    if means and len(complete) < len(accuracies.columns):
        lines += ["", f"The mean is over {', '.join(complete)}, on which all methods were run."]
    gain, n = gain_on_paper_datasets(table)
    if gain is not None:
        lines += [
            "",
            f"latteclip over zero_shot, mean over {n} of the paper's {len(published.DATASETS)} "
            f"datasets: {gain:+.2f}; published, over all: {published.GAIN_OVER_ZERO_SHOT:+.2f} "
            f"({published.SOURCE}).",
        ]
    return "".join(f"{line}\n" for line in lines)


def by_dataset(table: pd.DataFrame) -> pd.DataFrame:
    """Of a summary, acc1 with a row a method and a column a dataset."""
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


def gain_on_paper_datasets(table: pd.DataFrame) -> tuple[float | None, int]:
    """Mean gain of latteclip over zero_shot in points, and on how many of the paper's datasets.

    None where the two were run together on none of them.
    """
    wanted = by_dataset(table).reindex(
        index=["latteclip", "zero_shot"], columns=list(published.DATASETS)
    )
    gains = [new - old for new, old in wanted.to_numpy().T if not pd.isna(new - old)]
    return (sum(gains) / len(gains), len(gains)) if gains else (None, 0)


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]], *, n_left: int) -> list[str]:
    """The lines of a Markdown table, padded; the first n_left columns are set to the left."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    cells = [
        [
            cell.ljust(width) if i < n_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in [header, *rows]
    ]
    rule = [
        "-" * width if i < n_left else "-" * (width - 1) + ":" for i, width in enumerate(widths)
    ]
    return [f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]]]


def _number(value: float, signed: bool = False) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:+.1f}" if signed else f"{value:.1f}"
