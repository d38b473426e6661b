"""One page over all datasets and methods."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from latteclip.config.keys import Section, TableSection
from latteclip.core.files import write_text
from latteclip.core.tables import FLAGS
from latteclip.evaluate import summary
from latteclip.report import render

log = logging.getLogger(__name__)


class IndexSettings(Section):
    """The baseline of the page, and the pages and titles of the datasets."""

    table: TableSection  # its `baseline`
    reports: dict[str, str] = Field(default_factory=dict)  # dataset: path beside the page
    titles: dict[str, str] = Field(default_factory=dict)


def index_results(results: summary.Results, settings: IndexSettings, output: str) -> None:
    """Write the page that compares every run, one HTML file that needs no network."""
    runs, chosen, audits = results
    table = summary.summary(runs, settings.table.baseline)
    sizes = {run["dataset"]: run["images"] for run in runs}
    by_method = table.groupby("method", sort=False)["flags"]
    flags = {method: summary.union(of.str.split()).split() for method, of in by_method}
    means, complete = summary.means_over_datasets(table)
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
