"""One page about a dataset: what its runs reached, what changed, and where the figures come from.

Letters: N images, C classes.
"""

import csv
import json
import logging
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from latteclip.captions import text
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import read_object, write_text
from latteclip.evaluate.metrics import accuracy
from latteclip.evaluate.results import (
    MARKS,
    Accuracy,
    Audit,
    Comparison,
    Selection,
    mark_audited,
    read_audit,
    read_metrics,
    read_selection,
)
from latteclip.evaluate.train_predictions import choose_examples, read_predictions
from latteclip.report import comparison, images, render, runs
from latteclip.report.runs import RunFiles

ZERO_SHOT = "zero_shot"


@dataclass(frozen=True)
class Lead:
    """The model of a page, in percent and points; None where not known."""

    method: str
    seed: int
    seeds: int  # runs of its method
    is_chosen: bool  # by select_model
    acc1: float | None
    gain: float | None  # over zero-shot CLIP
    audited: Accuracy | None  # by a person's answers
    command: str | None  # that classifies photos with it

    @property
    def is_zero_shot(self) -> bool:
        """Whether it is the pretrained model, with which the page compares."""
        return self.method == ZERO_SHOT


def main_run(run_files: Sequence[RunFiles], selection: Selection | None, fallback: str) -> RunFiles:
    """The chosen run; where none is chosen, the first of a method."""
    if selection:
        for run in run_files:
            if (run.method, run.seed) == selection.run:
                return run
    return next((run for run in run_files if run.method == fallback), run_files[0])


def lead(
    run: RunFiles,
    metrics: Sequence[Mapping[str, Any]],
    zero_shot: float | None,
    selection: Selection | None,
    audit: Audit | None,
    folder: str,
    suffix: str,
) -> Lead:
    """What a page says first.

    Args:
        run: that the page is about.
        metrics: of all runs of the dataset.
        zero_shot: acc1 of the pretrained model, as a fraction.
        selection: the chosen model, where one was chosen.
        audit: what a person's answers say.
        folder: results/<dataset>.
        suffix: of the chosen model's folder there.
    """
    of_method = [one for one in metrics if one["method"] == run.method]
    acc1 = next((one["acc1"] for one in of_method if one["seed"] == run.seed), None)
    is_chosen = selection is not None and selection.run == (run.method, run.seed)
    model = None
    if is_chosen:
        model = f"{folder}/model{suffix}" if suffix else folder
    elif run.train_predictions:
        model = f"{folder}/{run.method}/seed{run.seed}/model"
    return Lead(
        method=run.method,
        seed=run.seed,
        seeds=len(of_method),
        is_chosen=is_chosen,
        acc1=None if acc1 is None else 100 * acc1,
        gain=None if acc1 is None or zero_shot is None else 100 * (acc1 - zero_shot),
        audited=audit.accuracy(run.method, run.seed) if audit else None,
        command=model and f"latteclip predict {shlex.quote(model)} photos",
    )


WORDS = {
    "Zero-shot CLIP": "The pretrained model as it is. It gives an image the class whose name, in "
    "a sentence such as \u201ca photo of a cat.\u201d, is most like the image.",
    "Pseudo-label": "The class that zero-shot CLIP gives a training image. It may be wrong.",
    "Confidence": "How sure zero-shot CLIP is of a class: a probability, which is often too high.",
    "Vote": "The class that the caption of a training image speaks for, or the captioner\u2019s "
    "scores of the classes. A model that is right more often agrees with more votes, though votes "
    "may be wrong too. Only votes of images that a model did not learn from count for it.",
    "Seed": "The number that random choices of a training start from. Trainings that differ in "
    "nothing else show how much of a result is chance.",
    "Top-1, top-5": "The share of images whose class is the model\u2019s best, or among its five "
    "best.",
    "Per-class recall": "The share of a class\u2019s images that are given it, as the mean over "
    "classes: small classes count as much as large ones.",
    "95 % interval": "Such intervals hold the truth 95 times of 100.",
}
METHODS = {
    "zero_shot_calibrated": "Zero-shot CLIP without its liking for some classes, which it has "
    "whatever an image shows.",
    "image_prototypes": "A class is given to images that look like the training images of the "
    "class, by zero-shot CLIP and captions. Nothing is trained.",
    "label_propagation": "Classes spread between images that look alike. Nothing is trained.",
    "flyp": "CLIP fine-tuned on its own pseudo-labels.",
    "flyp_supervised": "CLIP fine-tuned on the true labels: an upper bound.",
    "latteclip": "CLIP fine-tuned as the LatteCLIP paper does, with captions of images and groups.",
    "recommended": "The average of several fine-tunings of CLIP, on labels by zero-shot CLIP, "
    "captions and image prototypes together.",
}


def words(methods: Collection[str]) -> dict[str, str]:
    """The words of a page, and the methods that were run."""
    return WORDS | {name: METHODS[name] for name in methods if name in METHODS}


log = logging.getLogger(__name__)
TEMPLATE = "report.html"
WORST_PAIRS, MATRIX_CLASSES = 12, 12
CORRUPT = 100  # images that could not be read, in their table


@dataclass(frozen=True)
class ReportSettings:
    """What a page says about the runs, and which methods have a part of their own."""

    dataset: str
    baseline: str  # the method that the configuration compares with
    main: str  # the method that the page is about where no model was chosen
    paper: str | None  # the method of the paper, where it was run
    suffix: str  # of the names of what belongs to a table of its own
    overview: str  # the page over all datasets, beside the dataset's folder
    config: dict[str, Any]  # as merged for this dataset
    # Of each job: rule, run, path of Snakemake's benchmark file.
    benchmarks: list[dict[str, str]]


def report_dataset(
    images_path: str,
    pseudo_labels_path: str,
    runs_files: Sequence[runs.RunFiles],
    settings: ReportSettings,
    output: str,
    *,
    image_captions_path: str | None = None,
    group_captions_path: str | None = None,
    caption_summary_path: str | None = None,
    selection_path: str | None = None,
    calibrated_path: str | None = None,
    audit_path: str | None = None,
    unknown_path: str | None = None,
    duplicates_path: str | None = None,
    corrupt_path: str | None = None,
) -> None:
    """Write the page of a dataset, one HTML file that needs no network.

    It is about the chosen model. Without labels it shows what the methods say, not how often they
    are right. Where captions, a trained method or a second method are missing, the parts that need
    them are left out, and a note says so.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table.
        runs_files: the files of all runs.
        settings: of the page.
        output: the page.
        image_captions_path: a CAPTIONS table.
        group_captions_path: a CAPTIONS table.
        caption_summary_path: of the captions above.
        selection_path: which model was chosen.
        calibrated_path: the zero-shot classifier without class means.
        audit_path: what a person's answers say of the models.
        unknown_path: scores by which images belong to none of the classes.
        duplicates_path: images that show the same picture.
        corrupt_path: images that could not be decoded.

    Raises:
        UserError: an input is missing or does not fit the others.
    """
    train, test, classnames = runs.read_splits(images_path, pseudo_labels_path)
    # The images that methods are evaluated on; of what was trained on, labels say no accuracy.
    split = test if len(test) else replace(train, labels=None)
    audit = read_audit(audit_path) if audit_path else None
    metrics = mark_audited(
        [read_metrics(run.metrics) for run in runs_files],
        {settings.dataset: audit} if audit else {},
    )
    zero_shot = None
    if split.labels is not None:
        zero_shot = accuracy(split.pseudo_labels[:, None], split.labels, 1)
    rows = comparison.headline(metrics, settings.baseline, zero_shot)
    chosen = choose_examples(train.confidence, train.pseudo_labels)
    image_captions, group_captions = (
        read(path, train, chosen, classnames) if path else None
        for read, path in (
            (images.read_image_captions, image_captions_path),
            (images.read_group_captions, group_captions_path),
        )
    )
    selection = read_selection(selection_path) if selection_path else None
    main = main_run(runs_files, selection, settings.main)
    found = comparison.read_opinions(runs_files, split, main)
    of_examples = None
    if main.train_predictions and main.method != ZERO_SHOT:
        of_examples = _predictions_of(main.train_predictions, train, chosen, classnames)
    page = render.render(
        TEMPLATE,
        dataset=settings.dataset,
        title=settings.config.get("title", settings.dataset),
        config=settings.config,
        overview=settings.overview,
        classnames=classnames,
        train_images=len(train),
        test_images=len(test),
        duplicates=images.read_duplicates(duplicates_path, train, test, runs_files)
        if duplicates_path
        else None,
        skipped=tables.read_metadata(images_path, "image_id").get("skipped", {}),
        corrupt=_corrupt(corrupt_path),
        corrupt_shown=CORRUPT,
        split=split,
        labelled=split.labels is not None,
        train_labelled=train.labels is not None,
        rows=rows,
        axis=_axis(rows, zero_shot),
        zero_shot=None if zero_shot is None else 100 * zero_shot,
        selection=selection,
        audit=audit,
        opinions=_opinions(found, split, classnames),
        unknown=images.unknown(unknown_path, [test, train]) if unknown_path else None,
        biases=comparison.bias_chart(calibrated_path) if calibrated_path else None,
        lead=lead(
            main,
            metrics,
            zero_shot,
            selection,
            audit,
            f"results/{settings.dataset}",
            settings.suffix,
        ),
        agreements={
            row.method: 100 * value
            for row in rows
            if selection and (value := selection.agreement(row.method)) is not None
        },
        audit_rows=_audit_rows(audit) if audit else [],
        paper=next((row for row in rows if row.method == settings.paper), None),
        baseline=settings.baseline,
        variants=variants(rows, settings.config["methods"]),
        marks_used={mark: MARKS[mark] for mark in MARKS if any(mark in row.marks for row in rows)},
        **_changes(split, found, classnames),
        training=comparison.training_charts(runs_files, main.method),
        recipes=runs.read_recipes(runs_files),
        parts=comparison.latteclip_charts(runs_files, main.method),
        paper_parts=comparison.latteclip_charts(runs_files, settings.paper)
        if settings.paper and settings.paper != main.method
        else [],
        pseudo_labels=comparison.pseudo_label_charts(train),
        items=images.items(chosen, train, of_examples, image_captions, group_captions),
        captions=_caption_statistics(caption_summary_path, image_captions, group_captions),
        words=words([row.method for row in rows]),
        provenance=_provenance(settings, runs_files, image_captions, group_captions),
    )
    size = len(page.encode())
    if size > render.MAX_BYTES:
        raise UserError(
            f"The report of {settings.dataset} would take {size / 1e6:.1f} MB, more than the "
            f"{render.MAX_BYTES / 1e6:.0f} MB that a page may have; ask for fewer methods at once."
        )
    write_text(output, page)
    log.info("Wrote %s: %d methods, %.1f MB.", output, len(rows), size / 1e6)


def _predictions_of(
    path: str, train: runs.Split, chosen: Sequence[int], classnames: Sequence[str]
) -> list[int]:
    """Return the classes that a model predicts for the chosen training images.

    Raises:
        UserError: the table is of other images, or its model knows other classes.
    """
    table = read_predictions(path, classnames, held_out=False)
    if table["image_id"].to_pylist() != [train.image_id(i) for i in chosen]:
        raise UserError(f"{path} is of other images than the page shows; rerun its stage.")
    return [int(label) for label in table["prediction"].to_pylist()]


def _opinions(
    found: comparison.Opinions, split: runs.Split, classnames: Sequence[str]
) -> dict[str, Any]:
    """What the methods say of the images, whether or not anybody knows their labels."""
    sizes = comparison.class_sizes(found, split.labels, len(classnames))
    return {
        "found": found,
        "main": found.methods[found.main],
        "base": found.methods[found.base],
        "methods": comparison.methods(found),
        "sizes": sizes,
        "largest": max(max(size.before, size.after) for size in sizes),
        "agreed": 100 * float((found.answers == 1).mean()),
        "shifts": comparison.shifts(found.before, found.after, len(classnames), WORST_PAIRS),
        "disputes": [] if split.labels is not None else images.disputes(found, split),
        "of_classes": images.of_classes(found, split),
    }


def _corrupt(path: str | None) -> list[dict[str, str]]:
    """The images that could not be decoded, with their reasons."""
    if path is None:
        return []
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _audit_rows(audit: Audit) -> list[tuple[Accuracy, Comparison | None]]:
    """The audited runs, the best first, and how much better the best is than each."""
    best = audit.best
    order = sorted(audit.accuracies, key=lambda one: -one.value)
    return [(one, audit.compare(best.run, one.run) if best else None) for one in order]


def _axis(rows: Sequence[comparison.Row], zero_shot: float | None) -> tuple[float, float] | None:
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


def variants(rows: Sequence[comparison.Row], methods: dict[str, dict[str, Any]]) -> list[Variant]:
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
    split: runs.Split, found: comparison.Opinions, classnames: Sequence[str]
) -> dict[str, Any]:
    """What the main model changed on images with labels: classes, confusions, single images."""
    if split.labels is None:
        return {}
    before, after = split.pseudo_labels, found.after
    pairs = comparison.worst_pairs(split.labels, before, after, len(classnames), WORST_PAIRS)
    inside = comparison.classes_of(pairs, MATRIX_CLASSES)
    classes = comparison.class_changes(split.labels, before, after, classnames)
    shares = comparison.confusion(split.labels, after, inside) if inside else None
    improved, hurt = (
        comparison.moved(
            split.labels, before, after, found.said.margins, improved=is_better, n=images.EXAMPLES
        )
        for is_better in (True, False)
    )
    return {
        "classes": classes[: comparison.ROWS // 2]
        + classes[comparison.ROWS // 2 :][-(comparison.ROWS // 2) :],
        "gained": sum(row.change > comparison.VISIBLE for row in classes),
        "lost": sum(row.change < -comparison.VISIBLE for row in classes),
        "of": len(classes),
        "pairs": pairs,
        "matrix": None
        if shares is None
        else {"classes": inside, "shares": (100 * shares).tolist()},
        "improved": images.examples(improved, split, split.labels),
        "hurt": images.examples(hurt, split, split.labels),
    }


def _caption_statistics(
    summary_path: str | None,
    image_captions: images.Captions | None,
    group_captions: images.Captions | None,
) -> dict[str, comparison.CaptionStatistics]:
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
        kind: comparison.caption_statistics(
            summaries[f"{kind}s"], captions.naming_pseudo_label, captions.naming_label
        )
        for kind, captions in kinds.items()
    }


def _provenance(
    settings: ReportSettings,
    run_files: Sequence[runs.RunFiles],
    *captions: images.Captions | None,
) -> dict[str, Any]:
    """Versions, commit, seeds, configuration, captioner, and what each job took."""
    metadata: dict[str, Any] = next((one.metadata for one in captions if one), {})
    jobs = runs.job_costs(settings.benchmarks)
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": runs.commit(),
        "versions": runs.versions(),
        "seeds": sorted({run.seed for run in run_files}),
        "model": text.model_of(metadata),
        "own_files": [
            file for one in captions if one and (file := text.user_file_of(one.metadata))
        ],
        "engine": metadata.get("engine"),
        "tokens": {
            name: sum(one.metadata.get(f"tokens_{name}") or 0 for one in captions if one)
            for name in ("read", "written")
        },
        "jobs": [asdict(job) for job in jobs],
        "in_all": asdict(runs.total(jobs)),
        "config": yaml.safe_dump(settings.config, sort_keys=False, allow_unicode=True, width=88),
    }
