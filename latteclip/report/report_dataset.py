"""One page about a dataset: labels on pictures, how accurate they are, and what to do next."""

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from latteclip.config.keys import Section, TableSection
from latteclip.config.registry import OBJECTIVES
from latteclip.core import tables
from latteclip.core.files import read_object, write_text
from latteclip.core.run_options import run_command
from latteclip.core.tables import FLAGS, IndexMetadata
from latteclip.core.terminal import counted
from latteclip.evaluate import results
from latteclip.labels.fusion_report import (
    UNCHECKED,
    FusionReport,
    PersonAnswers,
    read_fusion_report,
)
from latteclip.labels.guarantees import Interval, share_of_new
from latteclip.report import gallery, provenance, render
from latteclip.report.labellers import Labellers, in_words, read_labellers
from latteclip.report.summarize import summary

log = logging.getLogger(__name__)
Metrics = Sequence[Mapping[str, Any]]


class ReportSettings(Section):
    """Which methods a page is about, and its settings."""

    dataset: str
    table: TableSection  # its `baseline`
    main: str  # the method that the page is about where no model was chosen
    # The methods with which to train on the labels, None where a method trains already.
    training: list[str] | None = None
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
    unknown: str | None = None  # an UNKNOWN table
    duplicates: str | None = None  # a DUPLICATES table
    corrupt: str | None = None  # a CSV file of images that cannot be read


@dataclass(frozen=True)
class RunTables:
    """Where the results of one run are."""

    method: str
    seed: int
    metrics: str
    train_predictions: str | None = None  # of training images that it left out

    @property
    def run(self) -> results.Run:
        return self.method, self.seed


class Lead(NamedTuple):
    """The run that a page is about."""

    method: str
    seed: int
    seeds: int  # runs of the method
    words: str  # what its model is
    is_chosen: bool
    accuracy: Interval | None  # on the test images


class Step(NamedTuple):
    """What to do next."""

    text: str
    command: str


def report_dataset(
    files: PageFiles,
    runs_files: Sequence[RunTables],
    settings: ReportSettings,
    output: str,
) -> None:
    """Write the page of a dataset, one HTML file that needs no network."""
    train, n_test, classnames = gallery.read_training(
        files.images, files.pseudo_labels, files.fused_labels
    )
    audit = _read(results.read_audit, files.audit)
    selection = _read(results.read_selection, files.selection)
    fusion_report = _read(read_fusion_report, files.fusion_report)
    answers = fusion_report.answers if fusion_report else PersonAnswers()
    discovery = _read(read_object, files.discovery, ("actions",))
    metrics = [results.read_metrics(run.metrics) for run in runs_files]
    main = _main_run(runs_files, selection, settings)
    lead = _lead(main, metrics, n_test, selection, settings)
    stated = results.state(main.run, main.train_predictions, fusion_report, audit)
    page = render.render(
        "report.html",
        settings=settings,
        classnames=classnames,
        train=train,
        n_test=n_test,
        lead=lead,
        stated=stated,
        is_fused=fusion_report is not None,
        unchecked=UNCHECKED if fusion_report and not fusion_report.is_checked else "",
        answers=len(answers.images),
        checks=results.QUESTIONS // 2,
        within=ceil(100 * results.largest_error(results.QUESTIONS // 2)),
        discovery=discovery,
        rows=_method_rows(metrics, settings.table.baseline),
        audit=audit,
        meanings=FLAGS,
        items=_items(files, train, classnames, answers),
        steps=[*_next_steps(settings, lead, fusion_report, audit, discovery)],
        selection=selection,
        without_evidence=fusion_report.without_evidence if fusion_report else [],
        labellers=_labellers(files),
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


def _labellers(files: PageFiles) -> Labellers | None:
    if files.fused_labels and files.fusion_report:
        return read_labellers(Path(files.fused_labels).parent)
    return None


def _main_run(
    runs: Sequence[RunTables],
    selection: results.Selection | None,
    settings: ReportSettings,
) -> RunTables:
    """Return the chosen run, or else the first one of the main method."""
    chosen = selection.run if selection else None
    for run in runs:
        if run.run == chosen:
            return run
    return next((run for run in runs if run.method == settings.main), runs[0])


def _lead(
    run: RunTables,
    metrics: Metrics,
    n_test: int,
    selection: results.Selection | None,
    settings: ReportSettings,
) -> Lead:
    of_method = {row["seed"]: row["acc1"] for row in metrics if row["method"] == run.method}
    share = of_method[run.seed]
    objective = settings.config["methods"][run.method]["objective"]
    return Lead(
        run.method,
        run.seed,
        seeds=len(of_method),
        words=OBJECTIVES[objective].words,
        is_chosen=selection is not None and selection.run == run.run,
        accuracy=None if share is None else share_of_new(round(share * n_test), n_test),
    )


def _method_rows(metrics: Metrics, baseline: str) -> list[dict[Any, Any]]:
    """Return the rows of `summary`."""
    table = summary(metrics, baseline)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{**row, "flags": row["flags"].split()} for row in rows]


def _items(
    files: PageFiles,
    train: gallery.TrainingImages,
    classnames: Sequence[str],
    answers: PersonAnswers,
) -> list[dict[str, Any]]:
    """Return the training images of the page with their labels and captions."""
    chosen = gallery.choose_examples(train)
    captions = _read(gallery.read_captions, files.image_captions, train, chosen)
    items = []
    for i in chosen:
        image_id = train.image_ids[i]
        label = classnames[train.labels[i]]
        source = "zero-shot label" if train.fused is None else "fused label"
        if image_id in answers.images:
            label = answers.images[image_id] or "none of the classes"
            source = "a person's answer"
        items.append(
            {
                "image_id": image_id,
                "picture": gallery.picture_of(train.paths[i], gallery.PICTURE),
                "label": label,
                "source": source,
                "zero_shot": classnames[train.zero_shot[i]],
                "truth": None if train.truth is None else classnames[train.truth[i]],
                "caption": captions[i] if captions else None,
            }
        )
    return items


def _next_steps(
    settings: ReportSettings,
    lead: Lead,
    fusion_report: FusionReport | None,
    audit: results.Audit | None,
    discovery: Mapping[str, Any] | None,
) -> Iterator[Step]:
    """Yield what to do next, the most important first."""
    folder = f"results/{settings.dataset}"
    quoted = shlex.quote(folder)
    rerun = "Then run the workflow again, which updates this page:"
    if discovery and not discovery["actions"]:
        yield Step("Check the proposed classes:", f"latteclip classes {quoted}")
    if fusion_report and not fusion_report.answers.images:
        yield Step(
            f"Answer questions about {results.QUESTIONS} images, in about twenty minutes. The "
            "answers improve the labels and estimate their accuracy:",
            f"latteclip teach {quoted}",
        )
        yield Step(rerun, run_command(folder))
    elif lead.accuracy is None and not (audit and audit.accuracies):
        yield Step(
            "Answer questions about held-out images, which estimate each model's accuracy:",
            f"latteclip audit {quoted}",
        )
        yield Step(rerun, run_command(folder))
    if fusion_report:
        yield Step(
            "Use the labels in other programs:",
            f"latteclip labels export {quoted} --format csv --output labels.csv",
        )
    if settings.training:
        yield Step(
            "Train CLIP on the labels too, in minutes on a GPU and hours without. The trained "
            "model is chosen only if votes of held-out images say that it is better:",
            run_command(folder, method=",".join(settings.training)),
        )
    model = f"{folder}/{lead.method}/seed{lead.seed}/model"
    if lead.is_chosen:
        model = f"{folder}/model{settings.suffix}" if settings.suffix else folder
    yield Step(
        "Put new photographs into a folder new-photos, and classify them with this model:",
        f"latteclip predict {shlex.quote(model)} new-photos",
    )


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
    runs: Sequence[RunTables],
) -> dict[str, Any]:
    jobs = provenance.job_costs(folder)
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": provenance.versions(),
        "seeds": sorted({run.seed for run in runs}),
        "asked": dict(provenance.asked(folder)),
        "jobs": jobs,
        "in_all": provenance.total(jobs),
        "config": yaml.safe_dump(
            settings.config, sort_keys=False, allow_unicode=True, width=88
        ),
    }
