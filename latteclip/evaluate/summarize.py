"""One table over datasets and methods from the metrics of every run."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from latteclip.core.files import write_text
from latteclip.evaluate.results import (
    MARKS,
    Audit,
    Selection,
    marked,
    read_audits,
    read_metrics,
    read_selection,
)
from latteclip.evaluate.summary import (
    PAPER_DATASETS,
    PAPER_GAIN_OVER_ZERO_SHOT,
    PAPER_SOURCE,
    by_dataset,
    earlier,
    gain_on_datasets,
    means_over_datasets,
    split_by_labels,
    summary,
    union,
)

# Columns on what people's answers say, and what they are called in an audit.
AUDITED = {"audited": "value", "audited_low": "low", "audited_high": "high"}
STAR = "★"  # of the model that was chosen


def summarize(
    metrics_paths: Sequence[str],
    selections_paths: Sequence[str],
    audits_paths: Sequence[str],
    baseline: str,
    csv_output: str,
    markdown_output: str,
    others: str | None = None,
) -> None:
    """Write one row per dataset and method: means and spreads over seeds, gain over the baseline.

    What people's answers say stands in columns of its own, and below the table for people.

    Args:
        metrics_paths: of the runs.
        selections_paths: of the datasets in which a model was chosen.
        audits_paths: of the datasets about which people answered.
        baseline: the method that gains are over.
        csv_output: the table for programs.
        markdown_output: the table for people.
        others: folder of results; of other datasets there, what earlier runs left is added.

    Raises:
        UserError: a file is missing or broken.
    """
    metrics = [read_metrics(path) for path in metrics_paths]
    before = earlier(others, {values["dataset"] for values in metrics})
    audits = read_audits(audits_paths) | before.audits
    runs = pd.DataFrame(marked(metrics + before.metrics, audits))
    selections = [read_selection(path) for path in selections_paths] + before.selections
    table = summary(runs, baseline)
    table["chosen"] = chosen_seeds(table, selections)
    table["agreement"] = agreements(table, selections)
    for column, name in AUDITED.items():
        table[column] = audited_figures(table, audits, name)
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    labelled, unlabelled = split_by_labels(table)
    parts = [markdown(labelled, baseline)] if len(labelled) else []
    parts += [without_labels(unlabelled)] if len(unlabelled) else []
    text = "\n".join(parts) + reasons(selections) + audited(audits, set(labelled["dataset"]))
    write_text(markdown_output, text + (across(labelled) if len(labelled) else ""))


def agreements(table: pd.DataFrame, selections: Sequence[Selection]) -> list[float | None]:
    """How far the method of each row agrees with votes, in percent; None where not known."""
    by_dataset = {one.dataset: one for one in selections}
    found: list[float | None] = []
    for dataset, method in zip(table["dataset"], table["method"], strict=True):
        value = by_dataset[dataset].agreement(method) if dataset in by_dataset else None
        found.append(None if value is None else 100 * value)
    return found


def without_labels(table: pd.DataFrame) -> str:
    """The datasets of which no label is known: what votes and people's answers say."""
    header = ["without labels", "method", "seeds", "agrees with votes", "right by answers"]
    rows = [
        [
            row["dataset"],
            row["method"] + (f" {STAR}" if row["chosen"] else ""),
            str(row["seeds"]),
            _number(row["agreement"]),
            "-"
            if pd.isna(row["audited"])
            else f"{row['audited']:.1f} ({row['audited_low']:.1f} to {row['audited_high']:.1f})",
        ]
        for row in table.to_dict("records")
    ]
    asked = [
        f"- {name}: `latteclip audit results/{name}` asks about a hundred images, and says which "
        "method is right most often."
        for name, part in table.groupby("dataset")
        if part["audited"].isna().all()
    ]
    return "\n".join([*_lines(header, rows, n_left=2), *([""] if asked else []), *asked]) + "\n"


def chosen_seeds(table: pd.DataFrame, selections: Sequence[Selection]) -> list[str]:
    """Of each row the seed whose model was chosen, as text; empty where that is another one's."""
    seeds = {(one.dataset, one.method): str(one.seed) for one in selections}
    keys = zip(table["dataset"], table["method"], strict=True)
    return [seeds.get(key, "") for key in keys]


def audited_figures(
    table: pd.DataFrame, audits: Mapping[str, Audit], name: str
) -> list[float | None]:
    """Of each row a figure of its method's audit in percent, None where there is none."""
    found: list[float | None] = []
    for dataset, method in zip(table["dataset"], table["method"], strict=True):
        accuracy = audits[dataset].accuracy(method) if dataset in audits else None
        found.append(None if accuracy is None else 100 * getattr(accuracy, name))
    return found


def audited(audits: Mapping[str, Audit], labelled: Collection[str]) -> str:
    """What people's answers say: the verdict of each dataset, and accuracies of labelled ones."""
    rows = [
        [
            audit.dataset,
            f"{one.method} (seed {one.seed})",
            f"{100 * one.value:.1f}",
            f"{100 * one.low:.1f} to {100 * one.high:.1f}",
        ]
        for audit in audits.values()
        for one in audit.accuracies
        if audit.dataset in labelled
    ]
    lines = [""] if audits else []
    if rows:
        lines += [*_lines(["audited", "method", "acc1", "95 % interval"], rows, n_left=2), ""]
    for audit in audits.values():
        lines.append(
            f"- audited: {audit.dataset}, {audit.answered} of {audit.images:,} {audit.split} "
            f"images: {audit.sentence}"
            if audit.accuracies
            else f"- audited: {audit.dataset}: {audit.sentence}"
        )
    return "".join(f"{line}\n" for line in lines)


def reasons(selections: Sequence[Selection]) -> str:
    """Why the methods with a star were chosen, one line per dataset."""
    lines = [f"- {STAR} {one.dataset}: {one.reason}\n" for one in selections]
    return "".join(["\n", *lines]) if lines else ""


def markdown(table: pd.DataFrame, baseline: str) -> str:
    """The summary for people: a Markdown table that also reads well in a terminal.

    A star and marks follow the method's name, and below the table it says what the marks mean.
    """
    gain = f"over {baseline.replace('_', '-')}"
    header = ["dataset", "method", "seeds", "acc1", gain, "acc5", "per-class recall"]
    rows: list[list[str]] = [
        [
            row["dataset"],
            row["method"]
            + (f" {STAR}" if row.get("chosen") else "")
            + (f" ({', '.join(row['marks'].split())})" if row["marks"] else ""),
            str(row["seeds"]),
            _number(row["acc1_mean"])
            + ("" if pd.isna(row["acc1_std"]) else f" +- {row['acc1_std']:.1f}"),
            "" if row["method"] == baseline else _number(row["acc1_gain"], signed=True),
            _number(row["acc5_mean"]),
            _number(row["mean_per_class_recall"]),
        ]
        for row in table.to_dict("records")
    ]
    used = union(table["marks"].str.split()).split()
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
    gain, n = gain_on_datasets(table)
    if gain is not None:
        lines += [
            "",
            f"latteclip over zero_shot, mean over {n} of the paper's {len(PAPER_DATASETS)} "
            f"datasets: {gain:+.2f}; published, over all: {PAPER_GAIN_OVER_ZERO_SHOT:+.2f} "
            f"({PAPER_SOURCE}).",
        ]
    return "".join(f"{line}\n" for line in lines)


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
