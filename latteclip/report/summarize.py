"""One table over datasets and methods, from the metrics of every run."""

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from latteclip.config.keys import PublishedSection
from latteclip.core.files import read_object, read_record, write_text
from latteclip.core.tables import FLAGS
from latteclip.evaluate.results import Audit, Selection
from latteclip.report.accuracies import summary, union
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
    published: list[PublishedSection],
    csv_output: str,
    markdown_output: str,
) -> None:
    """Write one row per dataset and method: means and spreads over seeds, gain over the baseline.

    Below the table for people are the comparison with published figures, the choices of models, the
    verdicts of audits, and the questions and tokens of captioners.
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
    compared = comparison(table, published) if published else []
    text = "\n".join([accuracy_table(table), "", *compared, *lines])
    write_text(markdown_output, f"{text.rstrip()}\n")


def accuracy_table(table: pd.DataFrame) -> str:
    """Return the table as Markdown, with notes on its flags."""
    known = table.rename(columns=HEADINGS).drop(columns="baseline")
    known = known.dropna(axis=1, how="all").astype(object)
    text = known.where(known.notna(), None).to_markdown(
        index=False, floatfmt=".1f", missingval="-"
    )
    used = union(table["flags"].str.split()).split()
    return "\n".join([text, "", *(f"- {mark}: {FLAGS[mark]}." for mark in used)])


def comparison(
    table: pd.DataFrame, published: Sequence[PublishedSection]
) -> Iterator[str]:
    """Yield lines of Markdown: a table of methods by datasets, with what is published below each.

    A sentence follows on each published figure from which the run is further away than its spread.
    """
    datasets = [*dict.fromkeys(table["dataset"])]
    figures: dict[tuple[str, str], tuple[float, float]] = {}
    rows = []
    for method in dict.fromkeys(table["method"]):
        found = table[table["method"] == method]
        for row in found.itertuples():
            figures[method, str(row.dataset)] = row.acc1_mean, row.acc1_std
        if len(found) == len(datasets):
            figures[method, "mean"] = found["acc1_mean"].mean(skipna=False), 0
            figures[method, "gain"] = found["acc1_gain"].mean(skipna=False), 0
        cells = {
            key[1]: _cell(*figures[key]) for key in figures if key[0] == method
        }
        rows.append({"method": method, "source": "this run", **cells})
        of_method = [each for each in published if each.method == method]
        for source in dict.fromkeys(each.source for each in of_method):
            cells = {
                each.column: _cell(each.value, each.spread)
                for each in of_method
                if each.source == source
            }
            rows.append({"method": method, "source": source, **cells})
    columns = ["method", "source", *datasets, "mean", "gain"]
    grid = pd.DataFrame(rows, columns=columns).fillna("-")
    yield grid.to_markdown(index=False, disable_numparse=True)
    yield ""
    for figure in published:
        value, _ = figures.get((figure.method, figure.column), (math.nan, 0))
        off = round(value - figure.value, 2)
        if abs(off) > figure.spread:
            way = "higher" if off > 0 else "lower"
            yield (
                f"- differs: {figure.method}, {figure.column}: {value:.2f} in this run, "
                f"{abs(off):.2f} {way} than {figure.value:.2f} in {figure.source}."
            )


def _cell(value: float, spread: float) -> str:
    """Return a figure with its spread, if it has one."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f} ± {spread:.2f}" if spread > 0 else f"{value:.2f}"
