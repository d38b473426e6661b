"""One page about a dataset: what its runs reached, what changed, and where the figures come from.

Letters: S seeds, N images, C classes.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_text
from latteclip.core.json_files import read_object
from latteclip.evaluate import gallery_images
from latteclip.evaluate.audited import marked, read_audit
from latteclip.evaluate.metrics import accuracy
from latteclip.evaluate.results import MARKS, read_metrics, read_selection
from latteclip.report import dataset_charts, figures, gallery, provenance, render, runs
from latteclip.report.duplicates import read_duplicates

log = logging.getLogger(__name__)
TEMPLATE = "report.html"
WORST_PAIRS, MATRIX_CLASSES = 12, 12


@dataclass(frozen=True)
class ReportFiles:
    """What a page is made of, apart from the runs."""

    images: str
    pseudo_labels: str
    image_captions: str | None = None
    group_captions: str | None = None
    caption_summary: str | None = None  # of the captions above
    selection: str | None = None  # which model was chosen
    calibrated: str | None = None  # zero-shot classifier without class means
    audit: str | None = None  # what a person's answers say of the models
    duplicates: str | None = None  # images that show the same picture


@dataclass(frozen=True)
class ReportSettings:
    """What a page says about the runs, and which method it shows in detail."""

    dataset: str
    baseline: str  # the method that the configuration compares with
    shown: str | None  # None if nothing but zero-shot was run
    config: dict[str, Any]  # as merged for this dataset
    benchmarks: list[dict[str, str]]  # rule, run and path of Snakemake's benchmark files


@dataclass(frozen=True)
class Detail:
    """The method that is shown in detail, on the N evaluated images."""

    method: str
    predictions: runs.Ints  # [S, N]
    margins: runs.Floats  # [S, N]


def report_dataset(
    files: ReportFiles,
    run_files: Sequence[runs.RunFiles],
    settings: ReportSettings,
    output: str,
) -> None:
    """Write the page of a dataset, one HTML file that needs no network.

    Where labels, captions, a trained method or a second method are missing, the parts that need
    them are left out, and a note says so.

    Raises:
        UserError: an input is missing or does not fit the others.
    """
    train, test, classnames = runs.read_splits(files.images, files.pseudo_labels)
    audit = read_audit(files.audit) if files.audit else None
    metrics = marked(
        [read_metrics(run.metrics) for run in run_files],
        {settings.dataset: audit} if audit else {},
    )
    zero_shot = None
    if test.labels is not None:
        zero_shot = accuracy(test.before[:, None], test.labels, 1)
    detail = _detail(run_files, settings.shown, test)
    rows = figures.headline(metrics, settings.baseline, zero_shot)
    image_captions, group_captions = (
        gallery.read_captions(path) if path else None
        for path in (files.image_captions, files.group_captions)
    )
    chosen = gallery_images.choose(train.confidence, train.pseudo_labels)
    selection = read_selection(files.selection) if files.selection else None
    tuned = _tuned_labels(run_files, [train.image_ids[i] for i in chosen], classnames)
    page = render.render(
        TEMPLATE,
        dataset=settings.dataset,
        title=settings.config.get("title", settings.dataset),
        config=settings.config,
        classnames=classnames,
        train_images=len(train.image_ids),
        test_images=len(test.image_ids) if test.is_test_split else 0,
        duplicates=read_duplicates(files.duplicates, train, test, run_files)
        if files.duplicates
        else None,
        skipped=tables.read_metadata(files.images, "image_id").get("skipped", {}),
        labelled=test.labels is not None,
        train_labelled=train.labels is not None,
        rows=rows,
        axis=_axis(rows, zero_shot),
        zero_shot=None if zero_shot is None else 100 * zero_shot,
        selection=selection,
        audit=audit,
        biases=dataset_charts.bias_chart(files.calibrated) if files.calibrated else None,
        shown=next((row for row in rows if row.method == settings.shown), None),
        baseline=settings.baseline,
        variants=variants(rows, settings.config["methods"]),
        marks_used={mark: MARKS[mark] for mark in MARKS if any(mark in row.marks for row in rows)},
        **_changes(test, detail, classnames),
        training=dataset_charts.training_charts(run_files, settings.shown),
        pseudo_labels=dataset_charts.pseudo_label_charts(train),
        items=gallery.items(chosen, train, tuned, image_captions, group_captions),
        captions=_caption_statistics(
            files.caption_summary, train, image_captions, group_captions, classnames
        ),
        provenance=_provenance(settings, run_files, image_captions, group_captions),
    )
    size = len(page.encode())
    if size > render.MAX_BYTES:
        raise UserError(
            f"The report of {settings.dataset} would take {size / 1e6:.1f} MB, more than the "
            f"{render.MAX_BYTES / 1e6:.0f} MB that a page may have; ask for fewer methods at once."
        )
    write_text(output, page)
    log.info("Wrote %s: %d methods, %.1f MB.", output, len(rows), size / 1e6)


def _detail(
    run_files: Sequence[runs.RunFiles], shown: str | None, test: runs.Evaluated
) -> Detail | None:
    paths = [run.predictions for run in run_files if run.method == shown and run.predictions]
    if shown is None or not paths:
        return None
    return Detail(shown, *runs.read_predictions(paths, test))


def _tuned_labels(
    run_files: Sequence[runs.RunFiles], image_ids: Sequence[str], classnames: Sequence[str]
) -> list[int] | None:
    """What the tuned model says of the training images that are shown; None without one."""
    path = next((run.gallery for run in run_files if run.gallery), None)
    return gallery_images.read_predictions(path, image_ids, classnames) if path else None


def _axis(rows: Sequence[figures.Row], zero_shot: float | None) -> tuple[float, float] | None:
    """Ends of the scale on which the accuracies of all seeds are drawn, in percent."""
    values = [value for row in rows for value in row.each]
    if zero_shot is not None:
        values.append(100 * zero_shot)
    if not values:
        return None
    low, high = 5 * np.floor(min(values) / 5), 5 * np.ceil(max(values) / 5)
    return float(low), float(max(high, low + 5))


@dataclass(frozen=True)
class Variant:
    """A method that is like another but for some settings, and what that changes."""

    method: str
    like: str
    changed: str  # the settings in words
    acc1: float | None
    difference: float | None  # to the method that it is like


def variants(rows: Sequence[figures.Row], methods: dict[str, dict[str, Any]]) -> list[Variant]:
    """The ablations among the rows: methods that are `like` another one that was run."""
    by_name = {row.method: row for row in rows}
    found = []
    for row in rows:
        like = methods[row.method].get("like")
        if like not in by_name:
            continue
        other = by_name[like].acc1
        known = row.acc1 is not None and other is not None
        found.append(
            Variant(
                row.method,
                like,
                _difference(methods[like], methods[row.method]),
                row.acc1,
                row.acc1 - other if known else None,  # type: ignore[operator]
            )
        )
    return found


def _difference(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> str:
    """The leaves of `other` that `one` does not have, as `key: value`."""
    parts = []
    for key, value in other.items():
        if key == "like" or value == one.get(key):
            continue
        if isinstance(value, dict):
            parts.append(_difference(one.get(key) or {}, value, prefix))
        else:
            parts.append(f"{prefix}{key}: {json.dumps(value)}")
    return ", ".join(part for part in parts if part)


def _changes(
    test: runs.Evaluated, detail: Detail | None, classnames: Sequence[str]
) -> dict[str, Any]:
    """What changed on the test split: classes, confusions, single images."""
    if test.labels is None:
        return {"classes": [], "pairs": [], "matrix": None, "improved": [], "hurt": []}
    after = test.before[None] if detail is None else detail.predictions  # [S, N]
    c = len(classnames)
    old = figures.confusion(test.labels, test.before[None], c)
    new = figures.confusion(test.labels, after, c)
    pairs = figures.worst_pairs(old, new, WORST_PAIRS)
    inside = figures.classes_of(pairs, MATRIX_CLASSES)
    changes: dict[str, Any] = {
        "classes": figures.class_changes(test.labels, test.before, after, classnames),
        "pairs": pairs,
        "matrix": {
            "classes": inside,
            "shares": (100 * new[np.ix_(inside, inside)]).tolist(),
        }
        if inside
        else None,
    }
    for name in ("improved", "hurt"):
        found = []
        if detail is not None:
            found = figures.moved(
                test.labels,
                test.before,
                after,
                detail.margins,
                improved=name == "improved",
                n=gallery.EXAMPLES,
            )
        changes[name] = gallery.examples(found, test, test.labels)
    return changes


def _caption_statistics(
    summary_path: str | None,
    train: runs.TrainingSplit,
    image_captions: gallery.Captions | None,
    group_captions: gallery.Captions | None,
    classnames: Sequence[str],
) -> dict[str, figures.CaptionStatistics]:
    """Statistics by kind of the captions that were read, from their summary."""
    kinds = {
        kind: captions
        for kind, captions in (("image", image_captions), ("group", group_captions))
        if captions is not None
    }
    if not kinds:
        return {}
    if summary_path is None:
        raise UserError("A page with captions needs --caption-summary as well.")
    summaries = read_object(summary_path, [f"{kind}s" for kind in kinds])
    row_of = {name: i for i, name in enumerate(train.image_ids)}
    found = {}
    for kind, captions in kinds.items():
        if kind == "image":
            rows = [row_of[name] for name in captions.ids]
            pseudo = [classnames[train.pseudo_labels[row]] for row in rows]
            true = None if train.labels is None else [classnames[train.labels[row]] for row in rows]
        else:
            pseudo = [classnames[label or 0] for label in captions.pseudo_labels]
            true = None  # the members of a group may be of several classes
        found[kind] = figures.caption_statistics(
            summaries[f"{kind}s"], captions.texts, pseudo, true
        )
    return found


def _provenance(
    settings: ReportSettings,
    run_files: Sequence[runs.RunFiles],
    *captions: gallery.Captions | None,
) -> dict[str, Any]:
    """Versions, commit, seeds, configuration, captioner, and what each job took."""
    metadata = next((one.metadata for one in captions if one), {})
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "seeds": sorted({run.seed for run in run_files}),
        "captioner": metadata.get("captioner"),
        "engine": metadata.get("engine"),
        "jobs": [asdict(job) for job in provenance.job_costs(settings.benchmarks)],
        "config": yaml.safe_dump(settings.config, sort_keys=False, allow_unicode=True, width=88),
    }
