"""One page over all datasets and methods, with the paper's figures beside them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core.files import write_text
from latteclip.evaluate.results import (
    MARKS,
    Audit,
    Selection,
)
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
    found = read_results(metrics_paths, selections_paths, audits_paths, others)
    runs, selections, audits = found.metrics, found.selections, found.audits
    chosen = {one.dataset: one for one in selections}
    table, without = split_by_labels(summary(pd.DataFrame(runs), settings.baseline))
    sizes = {
        run["dataset"]: {"images": run["images"], "classes": len(run["per_class"]) or None}
        for run in runs
    }
    methods = list(dict.fromkeys(table["method"]))
    datasets = list(dict.fromkeys(table["dataset"]))
    cells = {
        dataset: _cells(
            table[table["dataset"] == dataset], chosen.get(dataset), audits.get(dataset)
        )
        for dataset in datasets
    }
    marks = {
        method: union(table[table["method"] == method]["marks"].str.split()).split()
        for method in methods
    }
    means, complete = means_over_datasets(table) if len(table) else ({}, [])
    folder = Path(output).parent
    pages = {name: f"{name}/report.html" for name in sizes}
    reports = {name: page for name, page in pages.items() if (folder / page).is_file()}
    page = render.render(
        TEMPLATE,
        settings=settings,
        reports=reports | settings.reports,
        unlabelled=[
            _unlabelled(name, sizes[name]["images"], chosen.get(name), audits.get(name))
            for name in dict.fromkeys(without["dataset"])
        ],
        datasets=datasets,
        methods=methods,
        cells=cells,
        sizes=sizes,
        marks=marks,
        reasons={one.dataset: one.reason for one in selections},
        audits=audits,
        explained={mark: MARKS[mark] for mark in MARKS if any(mark in m for m in marks.values())},
        complete=complete,
        means=means,
        paper=paper_rows(table) if len(table) else [],
        n_paper=len(PAPER_DATASETS),
        source=PAPER_SOURCE,
    )
    write_text(output, page)
    log.info("Wrote %s, datasets: %s.", output, ", ".join(sizes))


def _unlabelled(
    dataset: str, images: int, selection: Selection | None, audit: Audit | None
) -> dict[str, Any]:
    """Return the agreement with votes and the audited accuracy of a dataset without labels.

    They are those of the chosen model. Without a chosen model, the audit's best one is audited.
    """
    audited = audit.best if audit else None
    if audit and selection:
        audited = audit.accuracy(*selection.run)
    return {
        "dataset": dataset,
        "images": images,
        "chosen": selection and selection.method,
        "agreement": selection and selection.agreement(selection.method),
        "zero_shot": selection and selection.agreement("zero_shot"),
        "audited": audited,
    }


def _cells(
    table: pd.DataFrame, selection: Selection | None, audit: Audit | None
) -> dict[str, dict[str, Any]]:
    """Return the cell of each method on a dataset, in percent and points."""
    rows = table.to_dict("records")
    unlabelled = [row for row in rows if "supervised" not in row["marks"].split()]
    best = max((row["acc1_mean"] for row in unlabelled if known(row["acc1_mean"])), default=None)
    return {
        row["method"]: {
            "acc1": known(row["acc1_mean"]),
            "spread": known(row["acc1_std"]),
            "gain": known(row["acc1_gain"]),
            "is_best": row in unlabelled and row["acc1_mean"] == best,
            "is_chosen": selection is not None and row["method"] == selection.method,
            "audited": audit.accuracy(row["method"]) if audit else None,
        }
        for row in rows
    }


def paper_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the paper's mean gains over its ten datasets, with those of the runs beside them.

    The other methods of the paper are not run here, so its second figure stands alone.
    """
    gain, n = gain_on_paper_datasets(table)
    zero_shot, others = "zero_shot", "the best other unsupervised method"
    return [
        {"over": zero_shot, "published": PAPER_GAIN_OVER_ZERO_SHOT, "ours": gain, "datasets": n},
        {"over": others, "published": PAPER_GAIN_OVER_OTHERS, "ours": None, "datasets": None},
    ]
