"""One table over datasets and methods from the metrics of every run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core.files import write_text
from latteclip.core.tables import FLAGS
from latteclip.core.terminal import counted
from latteclip.evaluate import summary
from latteclip.evaluate.results import Audit
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.report.index_results import IndexSettings, index_results
from latteclip.report.runs import asked

STAR = "★"  # marks the chosen model


def summarize(
    metrics_paths: Sequence[str],
    selections_paths: Sequence[str],
    audits_paths: Sequence[str],
    settings: IndexSettings,
    csv_output: str,
    markdown_output: str,
    page_output: str,
    others: str | None = None,
    fusion_reports_paths: Sequence[str] = (),
) -> None:
    """Write one row per dataset and method: means and spreads over seeds, gain over the baseline.

    Accuracies by a person's answers stand in columns of their own. The page has the same figures.
    """
    results = summary.read_results(metrics_paths, selections_paths, audits_paths, others)
    index_results(results, settings, page_output)
    metrics, selections, audits = results
    baseline = settings.table.baseline
    table = summary.summary(metrics, baseline)
    rows = []
    for dataset, method in table[["dataset", "method"]].itertuples(index=False):
        chosen = selections.get(dataset)
        seed = str(chosen.seed) if chosen and chosen.method == method else ""
        row: dict[str, Any] = {"chosen": seed}
        row |= dict.fromkeys(("audited", "audited_low", "audited_high"))
        if dataset in audits and (accuracy := audits[dataset].accuracy(method)):
            row["audited"] = 100 * accuracy.value
            row["audited_low"] = 100 * accuracy.low
            row["audited_high"] = 100 * accuracy.high
        rows.append(row)
    table = table.join(pd.DataFrame(rows))
    write_text(csv_output, table.to_csv(index=False, float_format="%.2f"))
    parts = [
        accuracy_table(table, baseline),
        "\n".join(
            f"- {STAR} {selection.dataset}: {selection.reason}"
            for selection in selections.values()
        ),
        "\n".join(map(_verdict, audits.values())),
        "\n".join(filter(None, map(_checked_labels, fusion_reports_paths))),
        "\n".join(_asked(metrics_paths)),
    ]
    write_text(markdown_output, "\n\n".join(filter(None, parts)) + "\n")


def accuracy_table(table: pd.DataFrame, baseline: str) -> str:
    """Return the accuracies as Markdown, with notes on the flags that follow methods."""
    flags = table["flags"].map(
        lambda names: f" ({', '.join(names.split())})" if names else ""
    )
    spread = table["acc1_std"].map(
        lambda value: "" if pd.isna(value) else f" +- {value:.1f}"
    )
    columns = {
        "dataset": table["dataset"],
        "method": _starred(table) + flags,
        "seeds": table["seeds"],
        "acc1": table["acc1_mean"].map(_number) + spread,
        f"over {baseline.replace('_', '-')}": table["acc1_gain"]
        .map("{:+.1f}".format)
        .mask(table["acc1_gain"].isna(), "-")
        .mask(table["method"] == baseline, ""),
        "acc5": table["acc5_mean"].map(_number),
        "per-class recall": table["mean_per_class_recall"].map(_number),
    }
    if table["audited"].notna().any():
        low, high = (table[f"audited_{end}"].map(_number) for end in ("low", "high"))
        interval = (" (" + low + " to " + high + ")").mask(table["audited"].isna(), "")
        columns["by answers"] = table["audited"].map(_number) + interval
    notes = [
        f"- {mark}: {FLAGS[mark]}."
        for mark in summary.union(table["flags"].str.split()).split()
    ]
    return _with_notes(pd.DataFrame(columns), notes)


def _asked(metrics_paths: Sequence[str]) -> Iterator[str]:
    """Yield what each table of answers of the datasets took."""
    for folder in dict.fromkeys(Path(path).parents[2] for path in metrics_paths):
        for table, used in asked(folder):
            yield f"- asked for {folder.name}/{table}: {used.in_words}."


def _verdict(audit: Audit) -> str:
    answered = f", {audit.answered} of {counted(audit.images, f'{audit.split} image')}"
    return f"- audited: {audit.dataset}{answered if audit.accuracies else ''}: {audit.sentence}"


def _checked_labels(path: str) -> str:
    """Return the accuracy of fused labels by a person's answers, or nothing without answers."""
    checked = read_fusion_report(path).answers.checked
    return f"- labels of {Path(path).parent.name}, {checked.sentence}" if checked else ""


def _with_notes(table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return a Markdown table, its first two columns set to the left, and notes below it."""
    align = ["left"] * 2 + ["right"] * (len(table.columns) - 2)
    # The cells are texts, which tabulate would read as numbers.
    text = table.to_markdown(index=False, colalign=align, disable_numparse=True)
    if not notes:
        return text
    return "\n".join([text, "", *notes])


def _starred(table: pd.DataFrame) -> pd.Series:
    return table["method"].mask(table["chosen"] != "", table["method"] + f" {STAR}")


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.1f}"
