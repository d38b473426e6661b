"""One table over datasets and methods, from the metrics of every run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core.files import write_text
from latteclip.core.tables import FLAGS
from latteclip.evaluate.results import FIGURES, read_audit, read_metrics, read_selection
from latteclip.labels.fusion_report import in_words, read_fusion_report
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
    # The first run of a method stands for it.
    audited = {
        (each.dataset, run.method): run for each in audits for run in reversed(each.runs)
    }
    table = summary(metrics, baseline)
    rows = []
    for dataset, method in table[["dataset", "method"]].itertuples(index=False):
        ends: list[float | None] = [None] * 3
        if run := audited.get((dataset, method)):
            ends = [run.accuracy.value, run.accuracy.low, run.accuracy.high]
        rows.append([seeds.get((dataset, method), ""), *ends])
    table[["chosen", *AUDITED]] = rows
    table[AUDITED] = 100 * table[AUDITED].astype(float)
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    lines = [f"- chosen: {each.dataset}: {each.reason}" for each in selections]
    lines += [f"- audited: {each.dataset}: {each.sentence}" for each in audits]
    for path in fusion_reports_paths:
        if right := read_fusion_report(path).answers.labels_right:
            lines.append(f"- labels of {Path(path).parent.name}: {in_words(right)}")
    for folder in dict.fromkeys(Path(path).parents[2] for path in metrics_paths):
        for name, used in asked(folder):
            lines.append(f"- asked for {folder.name}/{name}: {used.in_words}.")
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
