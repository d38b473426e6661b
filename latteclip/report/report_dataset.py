"""One page about a dataset: accuracies of its runs, their changes, pictures, and provenance."""

import json
import logging
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import binomtest

from latteclip.config.sections.base import Section
from latteclip.config.sections.table import TableSection
from latteclip.core import tables
from latteclip.core.errors import DELETE_AND_RERUN, UserError, first_line
from latteclip.core.files import read_object, write_text
from latteclip.core.flags import FLAGS
from latteclip.core.metadata import IndexMetadata
from latteclip.core.run_options import run_command
from latteclip.evaluate import results
from latteclip.evaluate.train_predictions import choose_examples, read_predictions
from latteclip.labels.fusion_report import (
    FusionReport,
    Gains,
    PersonAnswers,
    read_fusion_report,
)
from latteclip.report import charts, comparison, gallery, render, runs
from latteclip.report.comparison import BASELINE, ROWS, Row
from latteclip.report.labellers import Labellers, in_words, read_labellers, rest_price

log = logging.getLogger(__name__)
WORST_PAIRS = 12
MATRIX_CLASSES = 12
CHECKS = 60  # answers of `latteclip teach` about images drawn at random, by default
NORMAL = 1.96  # standard errors from the value to an end of a 95 % interval
VISIBLE = 0.05  # points: a smaller change is written as none
LABELS = {  # titles of the labels of training images, by their column of FUSED_LABELS
    "caption_label": "labels by captions alone",
    "lmm_label": "labels by class scores alone",
    "fused_label": "fused labels",
}


class ReportSettings(Section):
    """Which methods a page is about, and its settings."""

    dataset: str
    table: TableSection  # its `baseline`
    main: str  # the method that the page is about where no model was chosen
    paper: str | None  # the method of the paper, where it was run
    suffix: str  # ends the names of files that belong to a table of its own
    overview: str  # the page over all datasets, beside the dataset's folder
    config: dict[str, Any]  # the configuration of this dataset


def report_dataset(
    images_path: str,
    pseudo_labels_path: str,
    runs_files: Sequence[runs.RunTables],
    settings: ReportSettings,
    output: str,
    *,
    image_captions_path: str | None = None,
    group_captions_path: str | None = None,
    caption_summary_path: str | None = None,
    selection_path: str | None = None,
    audit_path: str | None = None,
    unknown_path: str | None = None,
    duplicates_path: str | None = None,
    corrupt_path: str | None = None,
    fused_labels_path: str | None = None,
    fusion_report_path: str | None = None,
    statement_path: str | None = None,
    discovery_path: str | None = None,
    voter_labels_path: str | None = None,
) -> None:
    """Write the page of a dataset, one HTML file that needs no network.

    It begins with how right labels and the chosen model are, labels on pictures, and the next step.
    The rest is folded. Without labels it compares predictions instead of accuracies. A note stands
    in place of the parts for which captions or a trained method are missing.
    """
    train, test, classnames = runs.read_splits(images_path, pseudo_labels_path)
    # The evaluated images. Labels of images that were trained on give no accuracy.
    split = test if len(test) else replace(train, labels=None)
    audit = _read(results.read_audit, audit_path)
    selection = _read(results.read_selection, selection_path)
    metrics = [results.read_metrics(run.metrics) for run in runs_files]
    metrics = results.mark_audited(metrics, {settings.dataset: audit} if audit else {})
    zero_shot = None  # accuracy in percent
    if split.labels is not None:
        zero_shot = 100 * float((split.pseudo_labels == split.labels).mean())
    rows = comparison.headline(metrics, settings.table.baseline, zero_shot)
    main = _main_run(runs_files, selection, settings)
    lead = _lead(main, metrics, zero_shot, selection, len(split))
    compared = comparison.read_method_predictions(runs_files, main)
    chosen = choose_examples(train.confidence, train.pseudo_labels)
    captions = {
        kind: gallery.read_captions(path, train, chosen, classnames)
        for kind, path in (("image", image_captions_path), ("group", group_captions_path))
        if path
    }
    fusion_report = _read(read_fusion_report, fusion_report_path)
    answers = fusion_report.answers if fusion_report else PersonAnswers()
    labels = _read(_fused_labels, fused_labels_path, train)
    statement = _read(results.read_statement, statement_path)
    if statement and statement.run != (main.method, main.seed):
        statement = replace(statement, model=None)
    discovery = _read(read_object, discovery_path, ("actions",))
    items = gallery.gallery(
        chosen,
        train,
        _example_predictions(main, classnames),
        captions,
        named=_named(train, chosen, classnames, labels, answers),
    )
    page = render.render(
        "report.html",
        settings=settings,
        classnames=classnames,
        train=train,
        test=test,
        split=split,
        labelled=split.labels is not None,
        lead=lead,
        stated=statement,
        steps=_next_steps(settings, lead, answers, fusion_report, audit, discovery),
        discovery=discovery,
        checks=CHECKS,
        reach=100 * NORMAL * math.sqrt(0.25 / CHECKS),
        selection=selection,
        audit=audit,
        rows=rows,
        axis=None if zero_shot is None else _axis(rows, zero_shot),
        zero_shot=zero_shot,
        meanings=FLAGS,
        variants=_ablations(rows, settings.config["methods"]),
        **_changes(split, compared, classnames),
        **_predictions(split, compared, len(classnames)),
        items=items,
        unknown=_read(gallery.read_unknown, unknown_path, [test, train]),
        **_training(runs_files, main, settings),
        paper=next((row for row in rows if row["method"] == settings.paper), None),
        pseudo_label_charts=charts.pseudo_label_charts(train),
        pseudo_classes=len(np.unique(train.pseudo_labels)),
        right=_read(_right_labels, fused_labels_path, train),
        signals=_signals(fusion_report) if fusion_report else None,
        labellers=_read(_labellers, voter_labels_path),
        labeller_words=in_words,
        rest_price=rest_price,
        captions=_read(gallery.caption_statistics, caption_summary_path, captions),
        duplicates=_read(gallery.read_duplicates, duplicates_path, train, test, runs_files),
        corrupt=_read(_rows_of_csv, corrupt_path),
        skipped=tables.read_metadata(images_path, IndexMetadata).skipped,
        provenance=_provenance(
            Path(output).parent, settings, runs_files, captions.values()
        ),
    )
    write_text(output, page)
    log.info("Wrote %s: %d methods, %.1f MB.", output, len(rows), len(page.encode()) / 1e6)


def _main_run(
    run_files: Sequence[runs.RunTables],
    selection: results.Selection | None,
    settings: ReportSettings,
) -> runs.RunTables:
    """Return the chosen run, or else the first one of the main method."""
    chosen = selection.run if selection else None
    for run in run_files:
        if (run.method, run.seed) == chosen:
            return run
    return next((run for run in run_files if run.method == settings.main), run_files[0])


def _example_predictions(
    main: runs.RunTables, classnames: Sequence[str]
) -> list[int] | None:
    """Return the classes of the training images of the page by the main run, if it tells some."""
    if not main.train_predictions or main.method == BASELINE:
        return None
    table = read_predictions(main.train_predictions, classnames, held_out=False)
    predictions: list[int] = table["prediction"].to_pylist()
    return predictions


def _predictions(
    split: runs.SplitReport, compared: comparison.MethodPredictions, n_classes: int
) -> Row:
    """Return the predictions of all methods for a split, which need no labels."""
    shifts = comparison.pairs(compared.labels[0], compared.after)
    shifts = shifts.sort_values("images", ascending=False, kind="stable")
    return {
        "compared": compared,
        "methods_used": comparison.methods_used(compared),
        "class_sizes": comparison.class_sizes(compared, split.labels, n_classes),
        "shifts": shifts.head(WORST_PAIRS).to_dict("records"),
        "disputes": [] if split.labels is not None else gallery.disputes(compared, split),
        "panels": gallery.class_panels(compared, split),
    }


def _training(
    run_files: Sequence[runs.RunTables], main: runs.RunTables, settings: ReportSettings
) -> Row:
    """Return the settings and the charts of the trainings."""
    curves = charts.training_curves(run_files)
    drawn = curves.keys() & {main.method, settings.paper}
    return {
        "recipes": runs.read_recipes(run_files),
        "training": charts.training_charts(curves, main.method),
        "parts": {name: charts.latteclip_charts(curves[name]) for name in drawn},
    }


def _read(read: Callable[..., Any], path: str | None, *others: Any) -> Any:
    return read(path, *others) if path else None


def _rows_of_csv(path: str) -> list[Row]:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    except ValueError as error:  # pandas derives its own from it
        raise UserError(
            f"{path} is damaged ({first_line(error)}); {DELETE_AND_RERUN}."
        ) from None


def _right_labels(path: str, train: runs.SplitReport) -> dict[str, float]:
    """Return the share of the training images that are labelled correctly, by what labels them.

    An image without a caption or class scores counts with the adapted zero-shot label.
    """
    if train.labels is None:
        return {}
    table = tables.read(path, tables.FUSED_LABELS, ["image_id", *LABELS])
    table = table.take(tables.find_rows(train.image_ids.column, table["image_id"], path))
    return {
        name: float((table[column].to_numpy() == train.labels).mean())
        for column, name in LABELS.items()
        if not table[column].null_count
    }


def _fused_labels(path: str, train: runs.SplitReport) -> runs.Ints:
    """Return the fused labels of the training images [N]."""
    table = tables.read(path, tables.FUSED_LABELS, ["image_id", "fused_label"])
    rows = tables.find_rows(train.image_ids.column, table["image_id"], path)
    return np.asarray(table["fused_label"].take(rows).to_numpy())


def _named(
    train: runs.SplitReport,
    chosen: Sequence[int],
    classnames: Sequence[str],
    labels: runs.Ints | None,
    answers: PersonAnswers,
) -> list[tuple[str, str]]:
    """Return the label of each chosen training image, and what it comes from."""
    named = []
    for i in chosen:
        image_id = train.image_ids[i]
        if image_id in answers.images:
            answer = answers.images[image_id] or "none of the classes"
            named.append((answer, "a person's answer"))
        elif labels is not None:
            named.append((classnames[labels[i]], "fused label"))
        else:
            named.append((classnames[train.pseudo_labels[i]], "zero-shot label"))
    return named


def _next_steps(
    settings: ReportSettings,
    lead: Row,
    answers: PersonAnswers,
    fusion_report: FusionReport | None,
    audit: results.Audit | None,
    discovery: Row | None,
) -> list[tuple[str, str]]:
    """Return what to do next: texts and commands, the most important first."""
    folder = f"results/{settings.dataset}"
    quoted = shlex.quote(folder)
    steps = []
    if discovery and not discovery["actions"]:
        steps.append(
            ("Look at the classes that a stage proposed:", f"latteclip classes {quoted}")
        )
    asks = True
    if fusion_report and not answers.images:
        text = (
            "Answer questions about 120 images, in about twenty minutes. The answers improve the "
            "labels and show how right they are:"
        )
        steps.append((text, f"latteclip teach {quoted}"))
    elif lead["acc1"] is None and not (audit and audit.accuracies):
        text = "Answer about images that taught nothing. The answers show how right each model is:"
        steps.append((text, f"latteclip audit {quoted}"))
    else:
        asks = False
    if asks:
        steps.append(
            ("Then run the workflow again, and this page follows:", run_command(folder))
        )
    if lead["is_chosen"]:
        model = f"{folder}/model{settings.suffix}" if settings.suffix else folder
    else:
        model = f"{folder}/{lead['method']}/seed{lead['seed']}/model"
    command = f"latteclip predict {shlex.quote(model)} photos"
    steps.append(("Classify the images in the folder photos with this model:", command))
    return steps


def _signals(report: FusionReport) -> Row:
    """Return what image encoders and a person's answers are worth to the labels."""
    predictors = []
    if report.image_encoders:
        weights = report.weights
        gains = report.gains or Gains(0.0, 0.0, 0.0)
        predictors = [
            _predictor("zero-shot CLIP", weights.zero_shot, gains.zero_shot),
            _predictor("image features of CLIP", weights.images, gains.images),
        ]
        predictors += [_predictor(e.model, e.weight, e.gain) for e in report.image_encoders]
    checked = report.answers.checked
    return {
        "predictors": predictors,
        "answers": len(report.answers.images),
        "checked": checked.sentence if checked else None,
    }


def _labellers(path: str) -> Labellers:
    return read_labellers(Path(path).parent)


def _predictor(model: str, weight: float, gain: float) -> Row:
    return {"model": model, "weight": weight, "times": math.exp(gain)}


def _lead(
    run: runs.RunTables,
    metrics: Sequence[Mapping[str, Any]],
    zero_shot: float | None,
    selection: results.Selection | None,
    n: int,
) -> Row:
    """Return the run that a page is about, with its accuracy in percent and its gain.

    The ends of the accuracy are Wilson's for n test images.
    """
    of_method = {
        run_metrics["seed"]: run_metrics["acc1"]
        for run_metrics in metrics
        if run_metrics["method"] == run.method
    }
    share = of_method.get(run.seed)
    acc1 = None if share is None else 100 * share
    low = None
    high = None
    if share is not None:
        test = binomtest(round(share * n), n)
        low, high = (100 * end for end in test.proportion_ci(method="wilson"))
    return {
        "method": run.method,
        "seed": run.seed,
        "seeds": len(of_method),
        "is_chosen": selection is not None and selection.run == (run.method, run.seed),
        "acc1": acc1,
        "low": low,
        "high": high,
        "gain": comparison.difference(acc1, zero_shot),
    }


def _axis(rows: Sequence[Row], zero_shot: float) -> tuple[int, int]:
    """Return the ends of the scale on which the accuracies of all seeds are drawn, in percent."""
    values = [zero_shot, *(value for row in rows for value in row["each"])]
    low = 5 * math.floor(min(values) / 5)
    high = 5 * math.ceil(max(values) / 5)
    return low, max(high, low + 5)


def _ablations(rows: Sequence[Row], methods: dict[str, dict[str, Any]]) -> list[Row]:
    """Return the methods among the rows that are `like` another one that was run."""
    acc1 = {row["method"]: row["acc1_mean"] for row in rows}
    return [
        {
            "method": name,
            "like": like,
            "changed": _changed(methods[like], methods[name]),
            "acc1": acc1[name],
            "difference": comparison.difference(acc1[name], acc1[like]),
        }
        for name in acc1
        if (like := str(methods[name].get("like"))) in acc1
    ]


def _changed(method: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the leaves of `other` that `method` does not have, as `key: value`."""
    before, after = (
        pd.json_normalize(each).to_dict("records")[0] for each in (method, other)
    )
    leaves = {key: value for key, value in after.items() if value != before.get(key)}
    names = {key: str(key).rpartition(".")[2] for key in leaves if key != "like"}
    return ", ".join(f"{name}: {json.dumps(leaves[key])}" for key, name in names.items())


def _changes(
    split: runs.SplitReport,
    predictions: comparison.MethodPredictions,
    classnames: Sequence[str],
) -> Row:
    if split.labels is None:
        return {}
    labels = split.labels
    before = split.pseudo_labels
    after = predictions.after
    pairs = comparison.worst_pairs(labels, before, after, WORST_PAIRS)
    inside = comparison.classes_of(pairs, MATRIX_CLASSES)
    classes = comparison.class_changes(labels, before, after, classnames)
    half = ROWS // 2
    return {
        "classes": classes[:half] + classes[half:][-half:],
        "gained": sum(row["change"] > VISIBLE for row in classes),
        "lost": sum(row["change"] < -VISIBLE for row in classes),
        "of": len(classes),
        "pairs": pairs,
        "inside": inside,
        "matrix": (100 * comparison.confusion(labels, after, inside)).tolist()
        if inside
        else [],
        "improved": gallery.changed_examples(split, predictions, improved=True),
        "hurt": gallery.changed_examples(split, predictions, improved=False),
    }


def _provenance(
    folder: Path,
    settings: ReportSettings,
    run_files: Sequence[runs.RunTables],
    captions: Iterable[gallery.CaptionPictures],
) -> Row:
    described = [kind.metadata for kind in captions]
    jobs = runs.job_costs(folder)
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": runs.commit(),
        "versions": runs.versions(),
        "seeds": sorted({run.seed for run in run_files}),
        "model": described[0].source.model if described else None,
        "user_files": [
            metadata.source.file for metadata in described if metadata.source.file
        ],
        "engine": described[0].engine if described else None,
        "read": sum(metadata.tokens_read for metadata in described),
        "written_tokens": sum(metadata.tokens_written for metadata in described),
        "jobs": jobs,
        "in_all": runs.total(jobs),
        "config": yaml.safe_dump(
            settings.config, sort_keys=False, allow_unicode=True, width=88
        ),
    }
