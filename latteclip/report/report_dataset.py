"""One page about a dataset: what its runs reached, what changed, and where the figures come from.

Letters: S seeds, N images, C classes.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from latteclip.core import tables, usage
from latteclip.core.errors import UserError
from latteclip.core.files import write_text
from latteclip.core.json_files import read_object
from latteclip.evaluate import gallery_images
from latteclip.evaluate.audited import marked, read_audit
from latteclip.evaluate.metrics import accuracy
from latteclip.evaluate.results import MARKS, Selection, read_metrics, read_selection
from latteclip.report import (
    captions_shown,
    dataset_charts,
    figures,
    gallery,
    opinions,
    provenance,
    render,
    runs,
    thumbnails,
)
from latteclip.report.duplicates import read_duplicates
from latteclip.report.opinions import ROWS

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
    unknown: str | None = None  # scores by which images belong to none of the classes
    duplicates: str | None = None  # images that show the same picture


@dataclass(frozen=True)
class ReportSettings:
    """What a page says about the runs, and which method it shows in detail."""

    dataset: str
    baseline: str  # the method that the configuration compares with
    shown: str | None  # None if nothing but zero-shot was run
    config: dict[str, Any]  # as merged for this dataset
    # Of each job: rule, run, path of Snakemake's benchmark file, and of what its command used.
    benchmarks: list[dict[str, str]]


@dataclass(frozen=True)
class Detail:
    """The method that is shown in detail, on the N images of a split."""

    predictions: runs.Ints  # [S, N]
    margins: runs.Floats  # [S, N]


def report_dataset(
    files: ReportFiles,
    run_files: Sequence[runs.RunFiles],
    settings: ReportSettings,
    output: str,
) -> None:
    """Write the page of a dataset, one HTML file that needs no network.

    Without labels it shows what the methods say, not how often they are right. Where captions,
    a trained method or a second method are missing, the parts that need them are left out, and a
    note says so.

    Raises:
        UserError: an input is missing or does not fit the others.
    """
    train, test, classnames = runs.read_splits(files.images, files.pseudo_labels)
    # The images that methods are evaluated on; of what was trained on, labels say no accuracy.
    split = test if len(test) else replace(train, labels=None)
    audit = read_audit(files.audit) if files.audit else None
    metrics = marked(
        [read_metrics(run.metrics) for run in run_files],
        {settings.dataset: audit} if audit else {},
    )
    zero_shot = None
    if split.labels is not None:
        zero_shot = accuracy(split.pseudo_labels[:, None], split.labels, 1)
    detail = _detail(run_files, settings.shown, split)
    rows = figures.headline(metrics, settings.baseline, zero_shot)
    chosen = gallery_images.choose(train.confidence, train.pseudo_labels)
    image_captions, group_captions = (
        read(path, train, chosen, classnames) if path else None
        for read, path in (
            (captions_shown.read_image_captions, files.image_captions),
            (captions_shown.read_group_captions, files.group_captions),
        )
    )
    selection = read_selection(files.selection) if files.selection else None
    tuned = _tuned_labels(run_files, [train.image_id(i) for i in chosen], classnames)
    page = render.render(
        TEMPLATE,
        dataset=settings.dataset,
        title=settings.config.get("title", settings.dataset),
        config=settings.config,
        classnames=classnames,
        train_images=len(train),
        test_images=len(test),
        duplicates=read_duplicates(files.duplicates, train, test, run_files)
        if files.duplicates
        else None,
        skipped=tables.read_metadata(files.images, "image_id").get("skipped", {}),
        split=split,
        labelled=split.labels is not None,
        train_labelled=train.labels is not None,
        rows=rows,
        axis=_axis(rows, zero_shot),
        zero_shot=None if zero_shot is None else 100 * zero_shot,
        selection=selection,
        audit=audit,
        opinions=_opinions(run_files, split, settings, selection, classnames),
        unknown=thumbnails.unknown(files.unknown, [test, train]) if files.unknown else None,
        biases=dataset_charts.bias_chart(files.calibrated) if files.calibrated else None,
        shown=next((row for row in rows if row.method == settings.shown), None),
        baseline=settings.baseline,
        variants=variants(rows, settings.config["methods"]),
        marks_used={mark: MARKS[mark] for mark in MARKS if any(mark in row.marks for row in rows)},
        **_changes(split, detail, classnames),
        training=dataset_charts.training_charts(run_files, settings.shown),
        pseudo_labels=dataset_charts.pseudo_label_charts(train),
        items=gallery.items(chosen, train, tuned, image_captions, group_captions),
        captions=_caption_statistics(files.caption_summary, image_captions, group_captions),
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
    run_files: Sequence[runs.RunFiles], shown: str | None, split: runs.Split
) -> Detail | None:
    said = [
        runs.read_said(run.predictions, split)
        for run in run_files
        if run.method == shown and run.predictions
    ]
    if not said:
        return None
    return Detail(
        np.stack([one.predictions for one in said]), np.stack([one.margins for one in said])
    )


def _opinions(
    run_files: Sequence[runs.RunFiles],
    split: runs.Split,
    settings: ReportSettings,
    selection: Selection | None,
    classnames: Sequence[str],
) -> dict[str, Any] | None:
    """What the methods say of the images, whether or not anybody knows their labels."""
    found = opinions.read_opinions(run_files, split, settings.shown, selection)
    if found is None:
        return None
    sizes = opinions.class_sizes(found, split.labels, len(classnames))
    return {
        "found": found,
        "main": found.methods[found.main],
        "base": found.methods[found.base],
        "methods": opinions.methods(found),
        "sizes": sizes,
        "largest": max(max(size.before, size.after) for size in sizes),
        "agreed": 100 * float((found.answers == 1).mean()),
        "shifts": opinions.shifts(found.before, found.after, len(classnames), WORST_PAIRS),
        "disputes": [] if split.labels is not None else thumbnails.disputes(found, split),
        "of_classes": thumbnails.of_classes(found, split),
    }


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


def _changes(split: runs.Split, detail: Detail | None, classnames: Sequence[str]) -> dict[str, Any]:
    """What changed on images with labels: classes, confusions, single images."""
    if split.labels is None:
        return {}
    before = split.pseudo_labels
    after = before[None] if detail is None else detail.predictions  # [S, N]
    pairs = figures.worst_pairs(split.labels, before, after, len(classnames), WORST_PAIRS)
    inside = figures.classes_of(pairs, MATRIX_CLASSES)
    classes = figures.class_changes(split.labels, before, after, classnames)
    changes: dict[str, Any] = {
        "classes": classes[: ROWS // 2] + classes[ROWS // 2 :][-(ROWS // 2) :],
        "gained": sum(row.change > figures.VISIBLE for row in classes),
        "lost": sum(row.change < -figures.VISIBLE for row in classes),
        "of": len(classes),
        "pairs": pairs,
        "matrix": {
            "classes": inside,
            "shares": (100 * figures.confusion(split.labels, after, inside)).tolist(),
        }
        if inside
        else None,
    }
    for name in ("improved", "hurt"):
        found = []
        if detail is not None:
            found = figures.moved(
                split.labels,
                before,
                after,
                detail.margins,
                improved=name == "improved",
                n=gallery.EXAMPLES,
            )
        changes[name] = gallery.examples(found, split, split.labels)
    return changes


def _caption_statistics(
    summary_path: str | None,
    image_captions: captions_shown.Captions | None,
    group_captions: captions_shown.Captions | None,
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
    return {
        kind: figures.caption_statistics(
            summaries[f"{kind}s"], captions.naming_pseudo_label, captions.naming_label
        )
        for kind, captions in kinds.items()
    }


def _provenance(
    settings: ReportSettings,
    run_files: Sequence[runs.RunFiles],
    *captions: captions_shown.Captions | None,
) -> dict[str, Any]:
    """Versions, commit, seeds, configuration, captioner, and what each job took."""
    metadata = next((one.metadata for one in captions if one), {})
    used = usage.by_stage(Path(job["used"]) for job in settings.benchmarks)
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "seeds": sorted({run.seed for run in run_files}),
        "captioner": metadata.get("captioner"),
        "engine": metadata.get("engine"),
        "jobs": [asdict(job) for job in provenance.job_costs(settings.benchmarks)],
        "used": used,
        "used_in_all": usage.total(used.values()),
        "config": yaml.safe_dump(settings.config, sort_keys=False, allow_unicode=True, width=88),
    }
