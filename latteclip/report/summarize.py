"""One table over datasets and methods, from the metrics of every run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from latteclip.core.files import read_object, read_record, write_text
from latteclip.core.tables import FLAGS
from latteclip.evaluate.results import FIGURES, Audit, Selection
from latteclip.report.provenance import AnswerTable, asked

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
    asked_files: Sequence[AnswerTable],
    baseline: str,
    csv_output: str,
    markdown_output: str,
) -> None:
    """Write one row per dataset and method: means and spreads over seeds, gain over the baseline.

    Below the table for people are the choices of models, the verdicts of audits, and the questions
    and tokens of captioners.
    """
    table = summary([read_object(path) for path in metrics_paths], baseline)
    selections = [read_record(Selection, path) for path in selections_paths]
    chosen = {
        (each.dataset, each.method): f"seed {each.seed}" for each in selections
    }
    runs = zip(table["dataset"], table["method"], strict=True)
    table["chosen"] = [chosen.get(run, "") for run in runs]
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    lines = [f"- chosen: {each.dataset}: {each.reason}" for each in selections]
    audits = [read_record(Audit, path) for path in audits_paths]
    lines += [f"- audited: {each.dataset}: {each.sentence}" for each in audits]
    lines += [
        f"- asked for {name}: {used.in_words}."
        for name, used in asked(asked_files)
    ]
    text = "\n".join([accuracy_table(table), "", *lines])
    write_text(markdown_output, f"{text.rstrip()}\n")


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


def accuracy_table(table: pd.DataFrame) -> str:
    """Return the table as Markdown, with notes on its flags."""
    known = table.rename(columns=HEADINGS).drop(columns="baseline")
    known = known.dropna(axis=1, how="all").astype(object)
    text = known.where(known.notna(), None).to_markdown(
        index=False, floatfmt=".1f", missingval="-"
    )
    used = union(table["flags"].str.split()).split()
    return "\n".join([text, "", *(f"- {mark}: {FLAGS[mark]}." for mark in used)])
