"""One page over all datasets and methods, with what the paper reports beside it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core.files import write_text
from latteclip.evaluate.results import (
    MARKS,
    Accuracy,
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
)
from latteclip.report import render

log = logging.getLogger(__name__)
TEMPLATE = "index.html"


@dataclass(frozen=True)
class IndexSettings:
    """What the page compares with, and where the pages of the datasets are."""

    baseline: str
    reports: dict[str, str] = field(default_factory=dict)  # dataset: path beside the page
    titles: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unlabelled:
    """A dataset of which no label is known; fractions, None where not known."""

    dataset: str
    images: int
    chosen: str | None
    agreement: float | None  # of the chosen model with votes
    zero_shot: float | None  # of zero-shot CLIP with votes
    audited: Accuracy | None  # of the chosen model, or else of the best


@dataclass(frozen=True)
class Cell:
    """One method on one dataset, in percent and points; None where not known."""

    acc1: float | None
    spread: float | None
    seeds: int
    gain: float | None
    is_best: bool  # of the methods on the dataset that read no labels
    is_chosen: bool
    audited: Accuracy | None  # by a person's answers


def index_results(
    metrics_paths: Sequence[str],
    selections_paths: Sequence[str],
    audits_paths: Sequence[str],
    settings: IndexSettings,
    output: str,
    others: str | None = None,
) -> None:
    """Write the page that compares every run, one HTML file that needs no network.

    Args:
        metrics_paths: of the runs.
        selections_paths: of the datasets in which a model was chosen.
        audits_paths: of the datasets about which people answered.
        settings: of the page.
        output: the page.
        others: folder of results; of other datasets there, what earlier runs left is shown, too.

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
    marks: dict[str, list[str]] = {}
    for row in table.to_dict("records"):
        own = marks.setdefault(row["method"], [])
        own += [mark for mark in row["marks"].split() if mark not in own]
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
        source=PAPER_SOURCE,
    )
    write_text(output, page)
    log.info("Wrote %s, datasets: %s.", output, ", ".join(sizes))


def _unlabelled(
    dataset: str, images: int, selection: Selection | None, audit: Audit | None
) -> Unlabelled:
    """What is known of a dataset without labels."""
    if selection is None:
        return Unlabelled(dataset, images, None, None, None, audit.best if audit else None)
    return Unlabelled(
        dataset,
        images,
        selection.method,
        selection.agreement(selection.method),
        selection.agreement("zero_shot"),
        audit.accuracy(*selection.run) if audit else None,
    )


def _cells(
    table: pd.DataFrame, selection: Selection | None, audit: Audit | None
) -> dict[str, Cell]:
    rows = table.to_dict("records")
    fair = [row["acc1_mean"] for row in rows if "supervised" not in row["marks"].split()]
    best = max((value for value in fair if not pd.isna(value)), default=None)
    return {
        row["method"]: Cell(
            known(row["acc1_mean"]),
            known(row["acc1_std"]),
            row["seeds"],
            known(row["acc1_gain"]),
            row["acc1_mean"] == best and "supervised" not in row["marks"].split(),
            selection is not None and row["method"] == selection.method,
            audit.accuracy(row["method"]) if audit else None,
        )
        for row in rows
    }


def paper_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What the paper reports as means over its ten datasets, and the same of our runs.

    The other methods that the paper compares with are not run here, so nothing of ours stands
    beside its second figure.
    """
    gain, n = gain_on_paper_datasets(table)
    return [
        {
            "name": "latteclip over zero_shot",
            "published": PAPER_GAIN_OVER_ZERO_SHOT,
            "ours": gain,
            "datasets": n,
            "of": len(PAPER_DATASETS),
        },
        {
            "name": "latteclip over the best other unsupervised method",
            "published": PAPER_GAIN_OVER_OTHERS,
            "ours": None,
            "datasets": None,
            "of": len(PAPER_DATASETS),
        },
    ]
