"""What a run of the workflow prints: at its start and end, of failed jobs, and for long stages.

Snakemake's log has the rest. Handlers of a module run if the other workflow's handlers call them
(docs/cluster.md).
"""

import atexit
import contextlib
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from latteclip.cli import estimate, status
from latteclip.cli.rules import workflow_errors
from latteclip.config import checks, jobs, resources
from latteclip.config.labellers import askings
from latteclip.config.resolve import Dataset, Run
from latteclip.core import run_options
from latteclip.core.errors import UserError
from latteclip.core.files import edited_classes, lines_of, read_object
from latteclip.core.terminal import SHORT, counted, one_line, paint

if TYPE_CHECKING:
    from latteclip.cli.machine import Machine

FUSED_LABELS = "fused_labels.parquet"
ERROR = "error: "  # begins the message of a command that fails
STOPPED = (
    "Stopped",
    "interrupted",
)  # beginnings of a line at the end of a log after Ctrl-C
TRACEBACK = "Traceback (most recent call last):"
LAST = 20  # lines of a log
MAX_MESSAGE = 2_000  # characters
STREAM = "DefaultStreamHandler"  # the name of Snakemake's handler for the terminal
ELAPSED = "Elapsed time"  # begins Snakemake's line at the end of a run
# What the terminal calls the rules that take long. The first job of each name is announced.
STAGES = {
    "download_dataset": "images",
    "index_images": "images",
    "download_model": "models",
    "name_images": "names of images",
    "pseudo_label_images": "features",
    "encode_images": "features",
    "caption_images": "captions",
    "caption_images_shard": "captions",
    "caption_groups": "captions",
    "caption_groups_shard": "captions",
    "score_classes": "class scores",
    "score_classes_shard": "class scores",
    "fuse_labels": "labels",
    "find_learning_rate": "training",
    "finetune": "training",
    "report_dataset": "page",
}
ALL_REASONS = "Reasons:"  # begins a list of the jobs by their reasons
# What the inputs and outputs of a job say too.
OF_FILES = re.compile(
    "(?:; Input files updated by another job|(?<=Missing output files)|(?<=by another job))"
    ": [^;]*"
)
REFUSED = "SLURM sbatch failed"  # begins what the executor says of a job that has not begun
refusals: dict[int, str] = {}  # such messages by the numbers of jobs
# Beginnings of what Snakemake says of its machine before a run.
OF_MACHINE = ("Building", "Using shell", "Group jobs", "Conda", "Singularity")


class Handlers:
    """The handlers of the Snakefile."""

    def __init__(self, config: Mapping[str, Any], run: Run, machine: "Machine") -> None:
        self._config = config
        self._run = run
        self._machine = machine
        if machine.prints:
            atexit.register(self._print_plan)
            atexit.register(self._link_folders)  # a run without jobs has no start

    def start(self) -> None:
        """Stop a run that cannot work, note its options, and print what it will do."""
        run = self._run
        pending = self._machine.pending
        with workflow_errors():
            status.refuse_second_run()  # Snakemake's lock sees live runs only
            checks.refuse_unanswered(run, pending, has_gpus=self._machine.has_gpus)
        self._link_folders()
        status.note_run()
        if not self._machine.is_module:
            # Options of a module would be those of the other workflow.
            whole = {dataset.name: dataset.whole for dataset in run.datasets}
            run_options.note_options(whole, self._config)
        lines = started(run, pending)
        self._print([*lines, *self._idle_gpus(pending), *self._edited_classes()])

    def _idle_gpus(self, pending: set[str]) -> Iterator[str]:
        """Yield a line about each dataset whose captions leave GPUs of this machine idle."""
        n = None if self._machine.is_cluster else self._machine.gpus
        for dataset in self._run.datasets:
            used = dataset.shards * resources.captioner_gpus(dataset.asker)
            if (
                n
                and 0 < used < n
                and any(each.is_pending(pending) for each in askings(dataset))
            ):
                yield (
                    f"{dataset.name}: captions take {used} of {n} GPUs; --config "
                    f"\"compute={{'shards': {n * dataset.shards // used}}}\" takes all."
                )

    def _link_folders(self) -> None:
        if self._machine.runs_jobs and not self._machine.is_module:
            with workflow_errors():
                self._machine.link_folders(self._run)

    def _print_plan(self) -> None:
        """Print what captioners would be asked after a dry run."""
        pending = self._machine.planned
        if pending is None:
            return
        with contextlib.suppress(UserError):  # a damaged table, which a run reports
            for dataset in self._run.datasets:
                self._print(estimate.lines(dataset, pending))

    def _edited_classes(self) -> Iterator[str]:
        """Yield a line about each dataset whose proposed classes a person edited."""
        for dataset in self._run.datasets:
            if dataset.discovers and edited_classes(dataset.folder) is not None:
                yield (
                    f"{dataset.name}: {dataset.folder}/classes.txt was edited by hand and is used "
                    "as it is. Delete it to return to the proposal."
                )

    def finish(self) -> None:
        """Print where the results are, after the last lines of Snakemake, and free the disk."""
        for dataset in self._run.datasets:
            shutil.rmtree(jobs.decoded_images(dataset), ignore_errors=True)
        lines = finished(self._run, self._machine.outputs)
        atexit.register(self._print, [*lines, *self._logs()])

    def report_failures(self) -> None:
        """Print the error messages of failed jobs last, also with --quiet."""
        lines = [
            refusals.get(job.jobid)
            or failure(job.rule.name, dict(job.wildcards.items()), job.log)
            for job in self._machine.failed
        ]
        lines = [paint(line, "red", sys.stderr) for line in lines]
        lines = [*self._logs(), *lines]
        atexit.register(print, "", *lines, sep="\n", file=sys.stderr, flush=True)

    def _logs(self) -> list[str]:
        """Return where the run is logged."""
        return [f"All of Snakemake's messages are in {f}." for f in self._machine.logs]

    def _print(self, lines: Iterable[str]) -> None:
        """Print to stderr as Snakemake does, but not with `--quiet all`."""
        if not self._machine.is_quiet:
            print("", *lines, sep="\n", file=sys.stderr, flush=True)


# The start and the end of a run.


def started(run: Run, pending: Collection[str]) -> list[str]:
    """Return the datasets of a run, and the downloads among the files that its jobs will write."""
    lines = [
        f"{dataset.name}: {_images(dataset)}. Methods: {', '.join(dataset.method_names)}."
        for dataset in run.datasets
    ]
    return [*lines, *_downloads(run, pending)]


def _images(dataset: Dataset) -> str:
    """Return the numbers of images and classes of a dataset, as far as they are known."""
    if counts := resources.counts(dataset):
        classes = (
            f" of {counted(counts.classes, 'class', 'classes')}" if counts.classes else ""
        )
        return f"{counted(counts.train + counts.test, 'image')}{classes}"
    folder = dataset.keys.source.folder if dataset.keys.source else None
    if not folder:
        return "images to download"
    n = estimate.count_files(dataset)
    if n is None:
        return f"images in {folder}"
    limit = dataset.run.keys.limit
    drawn = f", at most {limit} of each split are drawn" if limit else ""
    classes = "classes to be proposed"
    if not dataset.discovers:
        classes = _classes(folder, dataset.keys.split.examples)
    return f"{counted(n, 'image file')} in {folder}, {classes}{drawn}"


def _classes(folder: str, examples: str | None) -> str:
    path = Path(folder, checks.CLASSES)
    try:
        names = lines_of(path)
    except (OSError, UserError):
        place = examples or folder
        return f"classes: {checks.some_names(sorted(checks.class_folders(place)))}"
    return f"{counted(len(names), 'class', 'classes')} in {path}"


def _downloads(run: Run, pending: Collection[str]) -> Iterator[str]:
    for dataset in run.datasets:
        if f"resources/{dataset.whole}/data" in pending:
            size = dataset.keys.size or "size unknown"
            yield f"To download: the images of {dataset.whole} ({size})."
    repos = [
        " ".join(filter(None, (model.names or {}).values()))
        for slug, model in run.hub_models.items()
        if run.place(jobs.MODEL_NOTE.format(model=slug)) in pending
    ]
    if repos:
        yield f"To download from the Hugging Face hub, unless in its cache: {', '.join(repos)}."


def finished(run: Run, outputs: Collection[str]) -> list[str]:
    """Return the places of the results, and the next commands, by the outputs of all jobs."""
    lines: list[str] = []
    for dataset in run.datasets:
        results = dataset.folder
        page = f"{results}/report{run.suffix}.html"
        labels = f"{results}/{FUSED_LABELS}"
        if page in outputs:
            lines += _results(dataset, page)
        elif labels in outputs:
            lines += [
                f"{dataset.name}: the labels are in {labels}.",
                _export(results),
                "Next, to improve them by your answers, and to estimate their accuracy: latteclip "
                f"teach {results}",
            ]
            model = f"{results}/image_prototypes/seed0/model"
            if model in outputs:
                lines.append(_predict(model))
    index = f"results/{jobs.overview(run)}"
    if len(run.datasets) > 1 and index in outputs:
        lines.append(f"The page of all datasets is {index}.")
    return lines


def _results(dataset: Dataset, page: str) -> Iterator[str]:
    from latteclip.evaluate.results import read_selection  # takes long to import

    results, suffix = dataset.folder, dataset.run.suffix
    yield f"{dataset.name}: {_images(dataset)}. The page is {page}."
    model = f"{results}/model{suffix}"
    place = dataset.run.place
    for selection in map(place, jobs.selection(dataset)):
        chosen = read_selection(selection)
        yield f"The chosen model is {chosen.method}, seed {chosen.seed}, in {model}."
        yield from _by_answers(dataset)
        audits = list(filter(os.path.isfile, map(place, jobs.audit(dataset))))
        for audit in audits:
            yield f"By your answers: {read_object(audit, ['sentence'])['sentence']}"
        has_labels = os.path.isfile(f"{results}/{FUSED_LABELS}")
        if has_labels and not jobs.teaching_answers(dataset):
            yield (
                "Next, to improve it by your answers, and to estimate its accuracy: latteclip "
                f"teach {results}"
            )
        elif not audits:
            yield f"Next, to estimate its accuracy: latteclip audit {results}"
        if has_labels:
            yield _export(results)
        yield _predict(model if suffix else results)
    if not dataset.candidates:
        for method in dataset.methods:
            model = place(f"{method.folder(method.seeds[0])}/model")
            if os.path.isdir(model):
                yield _predict(model)


def _predict(model: str) -> str:
    return (
        "Next, to classify new photographs in a folder new-photos: latteclip predict "
        f"{shlex.quote(model)} new-photos"
    )


def _export(results: str) -> str:
    return (
        f"Next, to use the labels: latteclip labels export {shlex.quote(results)} --format csv "
        "--output labels.csv"
    )


def _by_answers(dataset: Dataset) -> Iterator[str]:
    """Yield the accuracy of the labels and of the chosen model, as far as answers give it."""
    from latteclip.evaluate.results import read_selection, read_statement

    run = dataset.main_method.name, 0
    for path in filter(os.path.isfile, jobs.selection(dataset)):
        run = read_selection(path).run
    statement = read_statement(Path(dataset.folder), run, dataset.run.suffix)
    if labels := statement.labels:
        yield f"The labels: {labels.words}, by {labels.n} answers of teach."
    if model := statement.model:
        yield (
            f"The model, on new photographs from the same days and places: {model.words}, by "
            f"{model.n} answers of {statement.by}."
        )


def failure(rule: str, wildcards: Mapping[str, str], logs: Sequence[str]) -> str:
    """Return the error message of a job that failed or was stopped, from its last log."""
    job = _job_name(rule, wildcards)
    written = [log for log in logs if os.path.isfile(log)]
    if not written:
        return f"{ERROR}{job} has no log. The messages above say why."
    log = written[-1]
    text = Path(log).read_text("utf-8", errors="replace").strip()
    _, is_known, message = f"\n{text}".rpartition(f"\n{ERROR}")
    if is_known:
        message, is_bug, _ = message.partition(TRACEBACK)
        place = f" The log is {log}." if is_bug else ""
        return f"{ERROR}{job}: {one_line(message, MAX_MESSAGE)}{place}"
    # Libraries may write more lines while they end.
    stopped = [line for line in text.splitlines()[-LAST:] if line.startswith(STOPPED)]
    if stopped:
        return f"{job}: {one_line(stopped[-1])}"
    return f"{ERROR}{job} ended without a message, as jobs do that are killed. The log is {log}."


def _job_name(rule: str, wildcards: Mapping[str, str]) -> str:
    values = dict(wildcards)
    name = rule
    if "dataset" in values:
        name += f" of {values.pop('dataset')}"
    parts = []
    for key, value in values.items():
        parts.append(f"{key} {value}" if key in ("seed", "shard") else value)
    return f"{name} ({', '.join(parts)})" if parts else name


# The lines of stages.


class ShortTerminal(logging.Filter):
    """Passes the first job of each of STAGES of a dataset, warnings and errors.

    What Snakemake prints before a run, that there is nothing to be done say, passes as well.
    """

    def __init__(self, is_dry: Callable[[], bool]) -> None:
        super().__init__()
        self.is_dry = is_dry
        self.jobs = 0  # jobs of the run
        self.done = 0
        self.announced: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        event = getattr(record, "event", None)
        if self.is_dry():
            if event == LogEvent.JOB_INFO:
                _shorten_plan(record)
            return not str(record.msg).startswith(ALL_REASONS)
        if event == LogEvent.RUN_INFO:
            self.jobs = record.stats["total"]  # type: ignore[attr-defined]
        if event == LogEvent.PROGRESS:
            self.done = record.done  # type: ignore[attr-defined]
        if event == LogEvent.JOB_INFO:
            return self._announces(record)
        if event == LogEvent.ERROR:  # an error of Snakemake itself
            return True
        if event == LogEvent.JOB_ERROR:
            _note_refusal(record)
        if event is not None:  # failed jobs are reported at the end
            return False
        text = str(record.msg)
        is_before = not self.jobs and not text.startswith(OF_MACHINE)
        is_urgent = record.levelno >= logging.WARNING
        return is_before or is_urgent or text.startswith(ELAPSED)

    def _announces(self, record: logging.LogRecord) -> bool:
        """Return whether a job is the first of a stage, whose line it then prepares."""
        rule = str(record.rule_name)  # type: ignore[attr-defined]
        wildcards = dict(record.wildcards or {})  # type: ignore[attr-defined]
        dataset = str(wildcards.get("dataset", ""))
        name = STAGES.get(rule)
        if name is None or (name, dataset) in self.announced:
            return False
        self.announced.add((name, dataset))
        of_dataset = f" of {dataset}" if dataset else ""
        now = time.strftime("%H:%M:%S")
        record.short = (
            f"{now}  {name}{of_dataset} ({self.done} of {self.jobs} jobs are done)"
        )
        return True


def _note_refusal(record: Any) -> None:
    """Note why SLURM did not take a job, which then has no log of its own."""
    reason, _, _ = str(record.rule_msg).partition("\n    sbatch call")
    if reason.startswith(REFUSED):
        refusals[record.jobid] = f"{ERROR}{record.rule_name}: {one_line(reason)}"


def _shorten_plan(record: Any) -> None:
    """Leave a job of a dry run its files, its wildcards, and why it will run."""
    record.log, record.jobid, record.benchmark = [], None, None
    record.priority, record.resources = 0, {}
    record.reason = OF_FILES.sub("", record.reason)


class ShortFormatter(logging.Formatter):
    """Formats the line of a stage, and all other messages as Snakemake does."""

    def __init__(self, usual: logging.Formatter) -> None:
        super().__init__()
        self.usual = usual

    def format(self, record: logging.LogRecord) -> str:
        short = getattr(record, "short", None)
        return str(short) if short else self.usual.format(record)


def shorten(is_dry: Callable[[], bool]) -> None:
    """Let Snakemake's handler for the terminal and the jobs of this run print the short form."""
    os.environ[SHORT] = "1"
    for handler in logger.handlers:
        if handler.name == STREAM and handler.formatter:
            handler.addFilter(ShortTerminal(is_dry))
            handler.setFormatter(ShortFormatter(handler.formatter))
