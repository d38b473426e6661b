"""One table and one page over datasets and methods, from the metrics of every run."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from latteclip.config.keys import Section, TableSection
from latteclip.core import tables
from latteclip.core.files import write_text
from latteclip.core.tables import FLAGS, IndexMetadata
from latteclip.core.terminal import counted
from latteclip.evaluate.predictions import FIGURES
from latteclip.evaluate.results import (
    Audit,
    Selection,
    read_audit,
    read_metrics,
    read_selection,
)
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.report import render
from latteclip.report.provenance import asked

log = logging.getLogger(__name__)
STAR = "★"  # marks the chosen model
Paths = Iterable[str | Path]
# Metrics, and of each dataset the choice of a model and the audit.
Results = tuple[list[dict[str, Any]], dict[str, Selection], dict[str, Audit]]


class IndexSettings(Section):
    """The baseline of table and page, and the pages and titles of the datasets."""

    table: TableSection  # its `baseline`
    reports: dict[str, str] = Field(default_factory=dict)  # dataset: path beside the page
    titles: dict[str, str] = Field(default_factory=dict)


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
    results = read_results(metrics_paths, selections_paths, audits_paths, others)
    index_results(results, settings, page_output)
    metrics, selections, audits = results
    baseline = settings.table.baseline
    table = summary(metrics, baseline)
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


def accuracy_table(table: pd.DataFrame, baseline: str) -> str:
    """Return the accuracies as Markdown, with notes on the flags that follow methods."""
    star = table["chosen"].map(lambda seed: f" {STAR}" if seed else "")
    flags = table["flags"].map(
        lambda names: f" ({', '.join(names.split())})" if names else ""
    )
    spread = table["acc1_std"].map(
        lambda value: "" if pd.isna(value) else f" +- {value:.1f}"
    )
    gain = table["acc1_gain"].map("{:+.1f}".format).mask(table["acc1_gain"].isna(), "-")
    columns = {
        "dataset": table["dataset"],
        "method": table["method"] + star + flags,
        "seeds": table["seeds"],
        "acc1": table["acc1_mean"].map(_number) + spread,
        f"over {baseline.replace('_', '-')}": gain.mask(table["method"] == baseline, ""),
        "acc5": table["acc5_mean"].map(_number),
        "per-class recall": table["mean_per_class_recall"].map(_number),
    }
    if table["audited"].notna().any():
        low, high = (table[f"audited_{end}"].map(_number) for end in ("low", "high"))
        interval = (" (" + low + " to " + high + ")").mask(table["audited"].isna(), "")
        columns["by answers"] = table["audited"].map(_number) + interval
    align = ["left"] * 2 + ["right"] * (len(columns) - 2)
    # The cells are texts, which tabulate would read as numbers.
    text = pd.DataFrame(columns).to_markdown(
        index=False, colalign=align, disable_numparse=True
    )
    used = union(table["flags"].str.split()).split()
    notes = "\n".join(f"- {mark}: {FLAGS[mark]}." for mark in used)
    return f"{text}\n\n{notes}".rstrip()


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


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.1f}"


def index_results(results: Results, settings: IndexSettings, output: str) -> None:
    """Write the page that compares every run, one HTML file that needs no network."""
    runs, chosen, audits = results
    table = summary(runs, settings.table.baseline)
    sizes = {run["dataset"]: run["images"] for run in runs}
    by_method = table.groupby("method", sort=False)["flags"]
    flags = {method: union(of.str.split()).split() for method, of in by_method}
    means, complete = means_over_datasets(table)
    folder = Path(output).parent
    pages = {
        name: f"{name}/report.html"
        for name in sizes
        if (folder / name / "report.html").is_file()
    }
    page = render.render(
        "index.html",
        settings=settings,
        reports=pages | settings.reports,
        flags=flags,
        cells=_cells(table),
        sizes=sizes,
        chosen=chosen,
        audits=audits,
        meanings=FLAGS,
        complete=complete,
        means=means,
    )
    write_text(output, page)
    log.info("Wrote %s, datasets: %s.", output, ", ".join(sizes))


def _cells(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Return rows of a summary by dataset and method, the best without labels as `is_best`."""
    reads_labels = table["flags"].str.contains("supervised")
    best = table[~reads_labels].groupby("dataset")["acc1_mean"].max()
    is_best = ~reads_labels & (table["acc1_mean"] == table["dataset"].map(best))
    rows = table.assign(is_best=is_best).set_index(["dataset", "method"]).astype(object)
    return rows.where(rows.notna(), None).to_dict("index")  # type: ignore[return-value]
