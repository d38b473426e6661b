"""One table over datasets and methods, from the metrics of every run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core.files import write_text
from latteclip.core.tables import FLAGS
from latteclip.core.terminal import counted
from latteclip.evaluate.predictions import FIGURES
from latteclip.evaluate.results import Audit, read_audit, read_metrics, read_selection
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.report.provenance import asked

AUDITED = ["audited", "audited_low", "audited_high"]
HEADINGS = {  # of the table for people
    "acc1_mean": "acc1",
    "acc1_std": "spread",
    "acc1_gain": "gain",
    "acc5_mean": "acc5",
    "mean_per_class_recall": "recall",
}


def summarize(
    metrics_paths: Sequence[str],
    selections_paths: Sequence[str],
    audits_paths: Sequence[str],
    baseline: str,
    csv_output: str,
    markdown_output: str,
    fusion_reports_paths: Sequence[str] = (),
) -> None:
    """Write one row per dataset and method: means and spreads over seeds, gain over the baseline.

    Accuracies by a person's answers stand in columns of their own.
    """
    metrics = [read_metrics(path) for path in metrics_paths]
    selections = [read_selection(path) for path in selections_paths]
    audits = [read_audit(path) for path in audits_paths]
    seeds = {(each.dataset, each.method): f"seed {each.seed}" for each in selections}
    audit_of = {each.dataset: each for each in audits}
    table = summary(metrics, baseline)
    rows = []
    for dataset, method in table[["dataset", "method"]].itertuples(index=False):
        audit = audit_of.get(dataset)
        accuracy = audit.accuracy(method) if audit else None
        ends = (accuracy.value, accuracy.low, accuracy.high) if accuracy else [None] * 3
        rows.append([seeds.get((dataset, method), ""), *ends])
    table[["chosen", *AUDITED]] = rows
    table[AUDITED] = 100 * table[AUDITED].astype(float)
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    lines = [f"- chosen: {each.dataset}: {each.reason}" for each in selections]
    lines += map(_verdict, audits)
    lines += _checked_labels(fusion_reports_paths)
    lines += _asked(metrics_paths)
    parts = [accuracy_table(table), "\n".join(lines)]
    write_text(markdown_output, "\n\n".join(filter(None, parts)) + "\n")


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


def accuracy_table(table: pd.DataFrame) -> str:
    """Return the table as Markdown, with notes on its flags."""
    table = (
        table.rename(columns=HEADINGS).drop(columns="baseline").dropna(axis=1, how="all")
    )
    known = table.astype(object).where(table.notna(), None)
    text = known.to_markdown(index=False, floatfmt=".1f", missingval="-")
    used = union(table["flags"].str.split()).split()
    notes = "\n".join(f"- {mark}: {FLAGS[mark]}." for mark in used)
    return f"{text}\n\n{notes}".rstrip()


def _verdict(audit: Audit) -> str:
    answered = f", {audit.answered} of {counted(audit.images, f'{audit.split} image')}"
    return f"- audited: {audit.dataset}{answered if audit.accuracies else ''}: {audit.sentence}"


def _checked_labels(paths: Sequence[str]) -> Iterator[str]:
    """Yield the accuracy of fused labels by a person's answers."""
    for path in paths:
        if checked := read_fusion_report(path).answers.checked:
            yield f"- labels of {Path(path).parent.name}, {checked.sentence}"


def _asked(metrics_paths: Sequence[str]) -> Iterator[str]:
    """Yield what each table of answers of the datasets took."""
    for folder in dict.fromkeys(Path(path).parents[2] for path in metrics_paths):
        for table, used in asked(folder):
            yield f"- asked for {folder.name}/{table}: {used.in_words}."
