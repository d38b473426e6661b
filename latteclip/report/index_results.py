"""One page over all datasets and methods, with the paper's figures beside them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core.files import write_text
from latteclip.evaluate.results import MARKS
from latteclip.evaluate.summary import (
    PAPER_DATASETS,
    PAPER_GAIN_OVER_OTHERS,
    PAPER_GAIN_OVER_ZERO_SHOT,
    PAPER_SOURCE,
    gain_on_paper_datasets,
    known,
    means_over_datasets,
    read_results,
    split_by_labels,
    summary,
    union,
)
from latteclip.report import render

log = logging.getLogger(__name__)
TEMPLATE = "index.html"


@dataclass(frozen=True)
class IndexSettings:
    """The baseline of the page, and the pages and titles of the datasets."""

    baseline: str
    reports: dict[str, str] = field(default_factory=dict)  # dataset: path beside the page
    titles: dict[str, str] = field(default_factory=dict)


def index_results(
    metrics_paths: Sequence[str],
    selections_paths: Sequence[str],
    audits_paths: Sequence[str],
    settings: IndexSettings,
    output: str,
    others: str | None = None,
) -> None:
    """Write the page that compares every run, one HTML file that needs no network.

    Raises:
        UserError: a file is missing or broken.
    """
    runs, chosen, audits = read_results(metrics_paths, selections_paths, audits_paths, others)
    table, without = split_by_labels(summary(runs, settings.baseline))
    sizes = {
        run["dataset"]: {"images": run["images"], "classes": len(run["per_class"]) or None}
        for run in runs
    }
    marks = table.groupby("method", sort=False)["marks"].agg(lambda of: union(of.str.split()))
    means, complete = means_over_datasets(table) if len(table) else ({}, [])
    folder = Path(output).parent
    pages = {name: f"{name}/report.html" for name in sizes}
    reports = {name: page for name, page in pages.items() if (folder / page).is_file()}
    page = render.render(
        TEMPLATE,
        settings=settings,
        reports=reports | settings.reports,
        unlabelled=list(dict.fromkeys(without["dataset"])),
        datasets=list(dict.fromkeys(table["dataset"])),
        marks={method: names.split() for method, names in marks.items()},
        cells=_cells(table),
        sizes=sizes,
        chosen=chosen,
        audits=audits,
        explained={mark: MARKS[mark] for mark in MARKS if any(mark in m.split() for m in marks)},
        complete=complete,
        means=means,
        paper=gain_on_paper_datasets(table) if len(table) else None,
        published=(PAPER_GAIN_OVER_ZERO_SHOT, PAPER_GAIN_OVER_OTHERS),
        n_paper=len(PAPER_DATASETS),
        source=PAPER_SOURCE,
    )
    write_text(output, page)
    log.info("Wrote %s, datasets: %s.", output, ", ".join(sizes))


def _cells(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of a summary by dataset and method, with the best method that needs no label.

    Figures are in percent and points.
    """
    reads_labels = table["marks"].str.contains("supervised")
    best = table[~reads_labels].groupby("dataset")["acc1_mean"].max()
    is_best = ~reads_labels & (table["acc1_mean"] == table["dataset"].map(best))
    return {
        (row["dataset"], row["method"]): {
            "acc1": known(row["acc1_mean"]),
            "spread": known(row["acc1_std"]),
            "gain": known(row["acc1_gain"]),
            "is_best": row["is_best"],
        }
        for row in table.assign(is_best=is_best).to_dict("records")
    }
