"""One page about a dataset: labels on pictures, how accurate they are, and what to do next."""

import logging
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import binomtest

from latteclip.config.keys import Section, TableSection
from latteclip.core import tables
from latteclip.core.files import read_object, write_text
from latteclip.core.run_options import run_command
from latteclip.core.tables import FLAGS, IndexMetadata
from latteclip.core.terminal import counted
from latteclip.evaluate import results
from latteclip.evaluate.statement import state
from latteclip.evaluate.summary import summary
from latteclip.labels.fusion_report import (
    UNCHECKED,
    FusionReport,
    PersonAnswers,
    read_fusion_report,
)
from latteclip.report import gallery, render, runs
from latteclip.report.labellers import Labellers, in_words, read_labellers

log = logging.getLogger(__name__)


class ReportSettings(Section):
    """Which methods a page is about, and its settings."""

    dataset: str
    table: TableSection  # its `baseline`
    main: str  # the method that the page is about where no model was chosen
    suffix: str  # ends the names of files that belong to a table of its own
    overview: str  # the page over all datasets, beside the dataset's folder
    config: dict[str, Any]  # the configuration of this dataset


@dataclass(frozen=True)
class PageFiles:
    """The inputs of a page, None where the run has no such file."""

    images: str  # an IMAGES table
    pseudo_labels: str  # a PSEUDO_LABELS table
    image_captions: str | None = None  # a CAPTIONS table
    selection: str | None = None
    audit: str | None = None
    fused_labels: str | None = None  # a FUSED_LABELS table
    fusion_report: str | None = None
    discovery: str | None = None  # the proposal of classes
    labeller_labels: str | None = None  # a LABELLER_LABELS table
    unknown: str | None = None  # an UNKNOWN table
    duplicates: str | None = None  # a DUPLICATES table
    corrupt: str | None = None  # a CSV file of images that cannot be read


def report_dataset(
    files: PageFiles,
    runs_files: Sequence[runs.RunTables],
    settings: ReportSettings,
    output: str,
) -> None:
    """Write the page of a dataset, one HTML file that needs no network."""
    train, n_test, classnames = runs.read_training(files.images, files.pseudo_labels)
    audit = _read(results.read_audit, files.audit)
    selection = _read(results.read_selection, files.selection)
    fusion_report = _read(read_fusion_report, files.fusion_report)
    answers = fusion_report.answers if fusion_report else PersonAnswers()
    discovery = _read(read_object, files.discovery, ("actions",))
    metrics = [results.read_metrics(run.metrics) for run in runs_files]
    main = _main_run(runs_files, selection, settings)
    labels = _read(gallery.fused_labels, files.fused_labels, train)
    labels_right = None
    if labels is not None and train.labels is not None:
        labels_right = float((labels == train.labels).mean())
    lead = _lead(main, metrics, n_test, selection)
    run = (main.method, main.seed)
    statement = state(run, main.train_predictions, fusion_report, audit)
    page = render.render(
        "report.html",
        settings=settings,
        classnames=classnames,
        train=train,
        n_test=n_test,
        lead=lead,
        labels_right=labels_right,
        stated=statement,
        is_fused=fusion_report is not None,
        unchecked=UNCHECKED if fusion_report and not fusion_report.is_checked else "",
        answers=len(answers.images),
        discovery=discovery,
        rows=_method_rows(metrics, settings.table.baseline),
        audit=audit,
        meanings=FLAGS,
        items=_items(files, train, labels, classnames, answers),
        steps=_next_steps(settings, lead, fusion_report, audit, discovery),
        selection=selection,
        without_evidence=fusion_report.without_evidence if fusion_report else [],
        labellers=_read(_labellers, files.labeller_labels),
        labeller_words=in_words,
        unknown=_read(
            gallery.read_unknown, files.unknown, files.images, files.pseudo_labels
        ),
        problems=[*_problems(files)],
        provenance=_provenance(Path(output).parent, settings, runs_files),
    )
    write_text(output, page)
    log.info("Wrote %s, %.1f MB.", output, len(page.encode()) / 1e6)


def _read(read: Callable[..., Any], path: str | None, *others: Any) -> Any:
    return read(path, *others) if path else None


def _labellers(path: str) -> Labellers:
    return read_labellers(Path(path).parent)


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


def _lead(
    run: runs.RunTables,
    metrics: Sequence[Mapping[str, Any]],
    n_test: int,
    selection: results.Selection | None,
) -> dict[str, Any]:
    """Return the run that a page is about, with its accuracy and Wilson's interval of it."""
    of_method = {row["seed"]: row["acc1"] for row in metrics if row["method"] == run.method}
    share = of_method.get(run.seed)
    low = high = None
    if share is not None:
        test = binomtest(round(share * n_test), n_test)
        low, high = test.proportion_ci(method="wilson")
    return {
        "method": run.method,
        "seed": run.seed,
        "seeds": len(of_method),
        "is_chosen": selection is not None and selection.run == (run.method, run.seed),
        "acc1": share,
        "low": low,
        "high": high,
    }


def _method_rows(
    metrics: Sequence[Mapping[str, Any]], baseline: str
) -> list[dict[Any, Any]]:
    """Return the rows of `summary`."""
    table = summary(metrics, baseline)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{**row, "flags": row["flags"].split()} for row in rows]


def _items(
    files: PageFiles,
    train: runs.TrainingImages,
    labels: runs.Ints | None,
    classnames: Sequence[str],
    answers: PersonAnswers,
) -> list[dict[str, Any]]:
    """Return the training images of the page with their labels and captions."""
    chosen = gallery.choose_examples(train.confidence, train.pseudo_labels)
    captions = _read(gallery.read_captions, files.image_captions, train, chosen)
    items = []
    for i in chosen:
        image_id = train.image_ids[i]
        if image_id in answers.images:
            label = answers.images[image_id] or "none of the classes"
            source = "a person's answer"
        elif labels is not None:
            label, source = classnames[labels[i]], "fused label"
        else:
            label, source = classnames[train.pseudo_labels[i]], "zero-shot label"
        items.append(
            {
                "image_id": image_id,
                "picture": gallery.picture_of(train.paths[i], gallery.PICTURE),
                "label": label,
                "source": source,
                "pseudo_label": classnames[train.pseudo_labels[i]],
                "truth": None if train.labels is None else classnames[train.labels[i]],
                "caption": captions[i] if captions else None,
            }
        )
    return items


def _next_steps(
    settings: ReportSettings,
    lead: Mapping[str, Any],
    fusion_report: FusionReport | None,
    audit: results.Audit | None,
    discovery: Mapping[str, Any] | None,
) -> list[tuple[str, str]]:
    """Return what to do next: texts and commands, the most important first."""
    folder = f"results/{settings.dataset}"
    quoted = shlex.quote(folder)
    steps = []
    if discovery and not discovery["actions"]:
        steps.append(("Check the proposed classes:", f"latteclip classes {quoted}"))
    question = None
    if fusion_report and not fusion_report.answers.images:
        text = (
            "Answer questions about 120 images, in about twenty minutes. The answers improve the "
            "labels and estimate their accuracy:"
        )
        question = text, f"latteclip teach {quoted}"
    elif lead["acc1"] is None and not (audit and audit.accuracies):
        text = (
            "Answer questions about held-out images, which estimate each model's accuracy:"
        )
        question = text, f"latteclip audit {quoted}"
    if question:
        rerun = "Then run the workflow again, which updates this page:"
        steps += [question, (rerun, run_command(folder))]
    model = f"{folder}/{lead['method']}/seed{lead['seed']}/model"
    if lead["is_chosen"]:
        model = f"{folder}/model{settings.suffix}" if settings.suffix else folder
    command = f"latteclip predict {shlex.quote(model)} photos"
    steps.append(("Classify the images in the folder photos with this model:", command))
    return steps


def _problems(files: PageFiles) -> Iterable[str]:
    """Yield a sentence about each kind of images that are left out or doubtful."""
    if files.duplicates:
        sets = tables.read(files.duplicates, tables.DUPLICATES)["set"]
        if len(sets):
            n = len(sets.unique())
            yield (
                f"Near-duplicates: {counted(len(sets), 'image')} in {counted(n, 'set')}, all used "
                "(duplicates.parquet)."
            )
    if files.corrupt and (n := len(pd.read_csv(files.corrupt, dtype=str))):
        yield f"Not readable and left out: {counted(n, 'image')} (corrupt.csv)."
    skipped = tables.read_metadata(files.images, IndexMetadata).skipped
    if skipped:
        suffixes = ", ".join(f"{suffix} ({n:,})" for suffix, n in skipped.items())
        yield f"Left out, for their suffix is not that of an image: {suffixes}."


def _provenance(
    folder: Path,
    settings: ReportSettings,
    run_files: Sequence[runs.RunTables],
) -> dict[str, Any]:
    jobs = runs.job_costs(folder)
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": runs.versions(),
        "seeds": sorted({run.seed for run in run_files}),
        "asked": dict(runs.asked(folder)),
        "jobs": jobs,
        "in_all": runs.total(jobs),
        "config": yaml.safe_dump(
            settings.config, sort_keys=False, allow_unicode=True, width=88
        ),
    }
