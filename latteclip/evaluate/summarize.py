"""One table over datasets and methods from the metrics of every run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core import tables
from latteclip.core.files import write_text
from latteclip.evaluate.results import MARKS, Audit
from latteclip.evaluate.summary import (
    PAPER_DATASETS,
    PAPER_GAIN_OVER_ZERO_SHOT,
    PAPER_SOURCE,
    by_dataset,
    gain_on_paper_datasets,
    means_over_datasets,
    read_results,
    split_by_labels,
    summary,
    union,
)
from latteclip.labels.guarantees import checked_sentence

STAR = "★"  # of the chosen model


def summarize(
    metrics_paths: Sequence[str],
    selections_paths: Sequence[str],
    audits_paths: Sequence[str],
    baseline: str,
    csv_output: str,
    markdown_output: str,
    others: str | None = None,
    fused_labels_paths: Sequence[str] = (),
) -> None:
    """Write one row per dataset and method: means and spreads over seeds, gain over the baseline.

    Accuracies by a person's answers stand in columns of their own, and below the Markdown table.
    """
    paths = metrics_paths, selections_paths, audits_paths
    metrics, selections, audits = read_results(*paths, others)
    table = summary(metrics, baseline)
    rows = []
    for dataset, method in table[["dataset", "method"]].itertuples(index=False):
        chosen = selections.get(dataset)
        share = chosen.agreement(method) if chosen else None
        accuracy = audits[dataset].accuracy(method) if dataset in audits else None
        rows.append(
            {
                "chosen": str(chosen.seed) if chosen and chosen.method == method else "",
                "agreement": None if share is None else 100 * share,
                "audited": accuracy and 100 * accuracy.value,
                "audited_low": accuracy and 100 * accuracy.low,
                "audited_high": accuracy and 100 * accuracy.high,
            }
        )
    table = table.join(pd.DataFrame(rows))
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    labelled, unlabelled = split_by_labels(table)
    parts = [
        accuracy_table(labelled, baseline),
        _unlabelled_table(unlabelled),
        "\n".join(f"- {STAR} {one.dataset}: {one.reason}" for one in selections.values()),
        _audit_table([one for one in audits.values() if one.dataset in {*labelled["dataset"]}]),
        "\n".join(map(_verdict, audits.values())),
        "\n".join(filter(None, map(_checked_labels, fused_labels_paths))),
        dataset_table(labelled),
    ]
    write_text(markdown_output, "\n\n".join(filter(None, parts)) + "\n")


def accuracy_table(table: pd.DataFrame, baseline: str) -> str:
    """Return the accuracies as Markdown, with notes on the marks that follow methods."""
    rows = []
    for row in table.to_dict("records"):
        marks = f" ({', '.join(row['marks'].split())})" if row["marks"] else ""
        spread = "" if pd.isna(row["acc1_std"]) else f" +- {row['acc1_std']:.1f}"
        gain = "" if row["method"] == baseline else _number(row["acc1_gain"], "+.1f")
        rows.append(
            {
                "dataset": row["dataset"],
                "method": _starred(row) + marks,
                "seeds": row["seeds"],
                "acc1": _number(row["acc1_mean"]) + spread,
                f"over {baseline.replace('_', '-')}": gain,
                "acc5": _number(row["acc5_mean"]),
                "per-class recall": _number(row["mean_per_class_recall"]),
            }
        )
    notes = [f"- {mark}: {MARKS[mark]}." for mark in union(table["marks"].str.split()).split()]
    return _with_notes(rows, notes)


def _unlabelled_table(table: pd.DataFrame) -> str:
    """Return the agreement with votes and the audited accuracy where no label is known."""
    rows = [
        {
            "without labels": row["dataset"],
            "method": _starred(row),
            "seeds": row["seeds"],
            "agrees with votes": _number(row["agreement"]),
            "right by answers": "-"
            if pd.isna(row["audited"])
            else f"{row['audited']:.1f} ({row['audited_low']:.1f} to {row['audited_high']:.1f})",
        }
        for row in table.to_dict("records")
    ]
    notes = [
        f"- {name}: `latteclip audit results/{name}` asks about a hundred images, and estimates "
        "the accuracy of each method."
        for name, part in table.groupby("dataset")
        if part["audited"].isna().all()
    ]
    return _with_notes(rows, notes)


def _audit_table(audits: Sequence[Audit]) -> str:
    rows = [
        {
            "audited": audit.dataset,
            "method": f"{one.method} (seed {one.seed})",
            "acc1": f"{100 * one.value:.1f}",
            "95 % interval": f"{100 * one.low:.1f} to {100 * one.high:.1f}",
        }
        for audit in audits
        for one in audit.accuracies
    ]
    return _with_notes(rows)


def _verdict(audit: Audit) -> str:
    answered = f", {audit.answered} of {audit.images:,} {audit.split} images"
    return f"- audited: {audit.dataset}{answered if audit.accuracies else ''}: {audit.sentence}"


def _checked_labels(path: str) -> str:
    """Return how right fused labels are by a person's answers, or nothing without answers."""
    checked = tables.read_metadata(path, "image_id").get("answers", {}).get("checked")
    return f"- labels of {Path(path).parent.name}, {checked_sentence(checked)}" if checked else ""


def dataset_table(table: pd.DataFrame) -> str:
    """Return methods by datasets, where there are several, with the paper's mean beside ours."""
    if not len(table):
        return ""
    parts = []
    accuracies = by_dataset(table)
    means, complete = means_over_datasets(table)
    if len(accuracies.columns) > 1:
        accuracies["mean"] = accuracies.index.map(means)
        rows = [
            {"acc1": method, **{str(name): _number(value) for name, value in row.items()}}
            for method, row in accuracies.iterrows()
        ]
        parts.append(_with_notes(rows, left=1))
        if means and len(complete) + 1 < len(accuracies.columns):
            parts.append(f"The mean is over {', '.join(complete)}, on which all methods were run.")
    gain, n = gain_on_paper_datasets(table)
    if gain is not None:
        parts.append(
            f"latteclip over zero_shot, mean over {n} of the paper's {len(PAPER_DATASETS)} "
            f"datasets: {gain:+.2f}; published, over all: {PAPER_GAIN_OVER_ZERO_SHOT:+.2f} "
            f"({PAPER_SOURCE})."
        )
    return "\n\n".join(parts)


def _with_notes(
    rows: Sequence[Mapping[str, object]], notes: Sequence[str] = (), left: int = 2
) -> str:
    """Return a Markdown table, its first columns set to the left, and notes below it."""
    if not rows:
        return ""
    table = pd.DataFrame(rows)
    align = ["left" if i < left else "right" for i in range(len(table.columns))]
    # The cells are texts, which tabulate would read as numbers.
    text = table.to_markdown(index=False, colalign=align, disable_numparse=True)
    return "\n".join([text, *([""] if notes else []), *notes])


def _starred(row: Mapping[Any, Any]) -> str:
    return f"{row['method']} {STAR}" if row.get("chosen") else str(row["method"])


def _number(value: float, form: str = ".1f") -> str:
    return "-" if pd.isna(value) else format(value, form)
