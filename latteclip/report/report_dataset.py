"""One page about a dataset: labels on pictures, how accurate they are, and what to do next."""

import logging
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import yaml

from latteclip.config.keys import Section
from latteclip.config.registry import RECOMMENDED
from latteclip.core import tables
from latteclip.core.files import read_object, read_record, write_text
from latteclip.core.run_options import run_command
from latteclip.core.tables import FLAGS, IndexMetadata
from latteclip.core.terminal import counted
from latteclip.evaluate import results
from latteclip.labels.fusion_report import (
    UNCHECKED,
    FusionReport,
    read_fusion_report,
)
from latteclip.labels.guarantees import MIN_ANSWERS, share_of_new
from latteclip.report import gallery, provenance
from latteclip.report.accuracies import summary
from latteclip.report.labellers import read_labellers
from latteclip.report.render import render
from latteclip.train.settings import auto_epochs

log = logging.getLogger(__name__)
# What the model of an objective is.
TRAINED = "a CLIP that was trained on your images"
MODELS = {
    "zero_shot": "CLIP as it is, not trained",
    "zero_shot_adapted": "CLIP with class texts adapted to your images, not trained",
    "image_prototypes": "a classifier of CLIP's features, not trained",
    "image_prototypes_encoders": (
        "a classifier of the features of CLIP and other image encoders, not trained"
    ),
    "average_weights": "a classifier of the features of a CLIP that was trained on your images",
}


class ReportSettings(Section):
    """Which methods a page is about, and its settings."""

    dataset: str
    baseline: str  # the method with which the table compares
    main: str  # the method that the page is about where no model was chosen
    # The methods with which to train on the labels, None where a method trains already.
    training: list[str] | None = None
    suffix: str  # ends the names of files that belong to a table of its own
    config: dict[str, Any]  # the configuration of this dataset


@dataclass(frozen=True)
class PageFiles:
    """The inputs of a page, None where the run has no such file."""

    images: str  # an IMAGES table
    pseudo_labels: str  # a PSEUDO_LABELS table
    unknown: str  # an UNKNOWN table
    duplicates: str  # a DUPLICATES table
    corrupt: str  # a CSV file of images that cannot be read
    encoding: str  # the seconds that CLIP takes to encode an image
    image_captions: str | None = None  # a CAPTIONS table
    selection: str | None = None
    audit: str | None = None
    fused_labels: str | None = None  # a FUSED_LABELS table
    fusion_report: str | None = None
    discovery: str | None = None  # the proposal of classes


def report_dataset(
    files: PageFiles,
    asked_files: Sequence[provenance.AnswerTable],
    runs_files: Sequence[results.RunFiles],
    settings: ReportSettings,
    output: str,
) -> None:
    """Write the page of a dataset, one HTML file that needs no network."""
    audit = read_record(results.Audit, files.audit) if files.audit else None
    selection = (
        read_record(results.Selection, files.selection)
        if files.selection
        else None
    )
    report = (
        read_fusion_report(files.fusion_report) if files.fusion_report else None
    )
    discovery = read_object(files.discovery) if files.discovery else None
    images = gallery.read_gallery(
        files.images,
        files.pseudo_labels,
        files.fused_labels,
        files.image_captions,
        list(report.answers) if report else [],
    )
    lead = next(
        run
        for run in runs_files
        if (run.run == selection.run if selection else run.method == settings.main)
    )
    metrics = read_object(lead.metrics)
    acc1, n = metrics["acc1"], metrics["images"]
    accuracy = None if acc1 is None else share_of_new(round(acc1 * n), n)
    is_tested = accuracy is not None or bool(audit and audit.runs)
    model_right, asking = results.accuracy_by_answers(lead, report, audit)
    seconds = read_object(files.encoding)["seconds_per_image"]
    seeds = len(settings.config["seeds"])
    minutes = training_minutes(seconds, images.n_train, seeds)
    steps = [
        *_next_steps(
            settings,
            lead.run,
            selection,
            is_tested,
            report,
            discovery,
            images.n_train,
            minutes,
        )
    ]
    table = summary(
        [read_object(run.metrics) for run in runs_files], settings.baseline
    )
    summarized = table.astype(object).where(table.notna(), None).to_dict("records")
    gains = {row["method"]: row["acc1_gain"] for row in summarized}
    page = render(
        "report.html",
        settings=settings,
        images=images,
        lead=lead,
        lead_words=MODELS.get(
            settings.config["methods"][lead.method]["objective"], TRAINED
        ),
        accuracy=accuracy,
        model_right=model_right,
        asking=asking,
        report=report,
        unchecked=UNCHECKED if report and not report.is_checked else "",
        discovery=discovery,
        rows=summarized,
        over_baseline=None
        if lead.method == settings.baseline
        else gains[lead.method],
        enough=2 * MIN_ANSWERS,
        folder=f"results/{settings.dataset}",
        audit=audit,
        meanings=FLAGS,
        steps=steps,
        selection=selection,
        gain=training_gain(selection),
        labellers=read_labellers(
            report, str(files.fused_labels), files.pseudo_labels, files.images
        )
        if report
        else [],
        unknown=gallery.read_unknown(
            files.unknown, files.images, files.pseudo_labels
        ),
        problems=[*_problems(files)],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=provenance.versions(),
        asked=dict(provenance.asked(asked_files)),
        config_text=yaml.safe_dump(
            settings.config, sort_keys=False, allow_unicode=True, width=88
        ),
    )
    write_text(output, page)
    log.info("Wrote %s, %.1f MB.", output, len(page.encode()) / 1e6)


def training_minutes(seconds: float, n_train: int, seeds: int) -> int:
    """Return the minutes of the trainings of `recommended` here, by the seconds to encode one.

    A step reads an image forwards and backwards, three times the work of encoding it. The search
    of a learning rate is as long as a training.
    """
    passes = 3 * auto_epochs(n_train) * (seeds + 1)
    return math.ceil(passes * n_train * seconds / 60)


def training_gain(
    selection: results.Selection | None,
) -> Mapping[str, Any] | None:
    """Return how a classifier without training compares with the chosen model `recommended`."""
    if not selection or selection.method != RECOMMENDED:
        return None
    return next(
        (
            row
            for row in selection.candidates
            if row["method"] == "image_prototypes" and row["images"]
        ),
        None,
    )


def _next_steps(
    settings: ReportSettings,
    lead: results.Run,
    selection: results.Selection | None,
    is_tested: bool,
    report: FusionReport | None,
    discovery: Mapping[str, Any] | None,
    n_train: int,
    minutes: int,
) -> Iterator[tuple[str, str]]:
    """Yield what to do next as a text and a command, the most important first."""
    folder = f"results/{settings.dataset}"
    quoted = shlex.quote(folder)
    rerun = run_command(folder)
    if discovery and not discovery["actions"]:
        yield "Check the proposed classes:", f"latteclip classes {quoted}"
    if report and not report.labels_right:
        n_asked = min(results.QUESTIONS, n_train)
        yield (
            f"Answer questions about {counted(n_asked, 'image')}, ten seconds each. The answers "
            "improve the labels and estimate their accuracy, and the run after them updates "
            "this page:",
            f"latteclip teach {quoted} && {rerun}",
        )
    elif not is_tested:
        yield (
            "Answer questions about held-out images. The answers estimate each model's "
            "accuracy, and the run after them updates this page:",
            f"latteclip audit {quoted} && {rerun}",
        )
    if report:
        yield (
            "Use the labels in other programs:",
            f"latteclip labels export {quoted} --format csv --output labels.csv",
        )
    if settings.training:
        here = f"about {counted(minutes, 'minute')} on this machine"
        yield (
            "Train CLIP on the labels too, which made it better on most photographs that were "
            f"measured. It takes minutes on a GPU, and {here} without:",
            run_command(folder, method=",".join(settings.training)),
        )
    method, seed = lead
    model = f"{folder}/{method}/seed{seed}/model"
    if selection:
        model = f"{folder}/model{settings.suffix}" if settings.suffix else folder
    yield (
        "Put new photographs into a folder new-photos, and classify them with this model:",
        f"latteclip predict {shlex.quote(model)} new-photos",
    )


def _problems(files: PageFiles) -> Iterator[str]:
    """Yield a sentence about each kind of images that are left out or doubtful."""
    sets = tables.read(files.duplicates)["set"]
    if len(sets):
        n = len(sets.unique())
        yield (
            f"Near-duplicates: {counted(len(sets), 'image')} in {counted(n, 'set')}, all used "
            "(duplicates.parquet)."
        )
    if n := len(pd.read_csv(files.corrupt, dtype=str)):
        yield f"Not readable and left out: {counted(n, 'image')} (corrupt.csv)."
    skipped = tables.read_metadata(files.images, IndexMetadata).skipped
    if skipped:
        suffixes = ", ".join(f"{suffix} ({n:,})" for suffix, n in skipped.items())
        yield f"Left out, for their suffix is not that of an image: {suffixes}."
