"""What a run of the workflow prints of its jobs, of failed jobs, and at its end.

Snakemake's log has the rest. Handlers of a module run if the other workflow's handlers call them
(docs/cluster.md).
"""

import atexit
import contextlib
import html
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from latteclip.cli import estimate, status
from latteclip.cli.machine import Machine
from latteclip.config import checks, jobs
from latteclip.config.resolve import Run
from latteclip.core import run_options
from latteclip.core.errors import UserError
from latteclip.core.files import PROPOSAL, read_object, write_text
from latteclip.core.terminal import SHORT, one_line
from latteclip.data import folder_files
from latteclip.labels import fusion_report
from latteclip.report.labellers import in_words

ERROR = "error: "  # begins the message of a command that fails
STOPPED = ("Stopped", "interrupted")  # begin the last line of a job after Ctrl-C
TRACEBACK = "Traceback (most recent call last):"
MAX_MESSAGE = 2_000  # characters
STREAM = "DefaultStreamHandler"  # the name of Snakemake's handler for the terminal
NOTHING = "Nothing to be done"  # begins what Snakemake says of a run without jobs
# Begins what the executor says of a job that has no log.
REFUSED = "SLURM sbatch failed"
STALE = (
    "Results of later stages are those of an earlier run. The next run makes them again, and "
    "`latteclip status` lists them."
)
OLD_PAGE = (
    "This page is older than its data: a run has begun that will write it again. If that run "
    "failed, run again:"
)
# In what Snakemake says of jobs that failed, whose errors are printed at the end.
OF_FAILED = re.compile(
    "CalledProcessError in file|Look above for error|At least one job did not"
)
REASONS = "Reasons:"  # begins a list of the jobs by their reasons
# What the inputs and outputs of a job say too, in the reason for which it will run.
OF_FILES = re.compile(
    "(?:; Input files updated by another job|(?<=Missing output files)|(?<=by another job))"
    ": [^;]*"
)
MAIN = '<main id="main" class="wrap">'  # begins the text of a page


class Handlers:
    """The handlers of the Snakefile."""

    def __init__(
        self, config: Mapping[str, Any], run: Run, machine: Machine
    ) -> None:
        self._config = config
        self._run = run
        self._machine = machine
        self._began = time.time()
        self._stale: list[str] = []  # outputs of an earlier run
        os.environ.pop(SHORT, None)  # a job of a cluster has a terminal of its own
        if machine.prints_little:
            os.environ[SHORT] = "1"  # for the jobs of this run
            for handler in logger.handlers:
                if handler.name == STREAM:
                    handler.addFilter(JobLines(machine))
        if machine.prints:
            atexit.register(self._print_plan)
            atexit.register(self._link_folders)  # a run without jobs has no start

    def start(self) -> None:
        """Stop a run that cannot work, note its options, and mark what is stale."""
        run, machine = self._run, self._machine
        with machine.errors():
            # Snakemake's lock sees live runs only.
            status.refuse_second_run(is_cluster=machine.is_cluster)
            checks.refuse_unanswered(
                run, machine.pending, has_gpus=machine.has_gpus
            )
        self._link_folders()
        command = run_options.rerun_command(self._config)
        self._stale = [*machine.mark_followers()]
        for output in self._stale:
            mark_stale(Path(output), command)
        if not machine.is_module:
            # Options of a module would be those of the other workflow.
            whole = {dataset.name: dataset.whole for dataset in run.datasets}
            run_options.note_options(whole, self._config)

    def _link_folders(self) -> None:
        """Let the links lead to the users' folders, one of which may have moved."""
        machine = self._machine
        if not machine.runs_jobs or machine.is_module:
            return
        with machine.errors():
            for dataset in map(self._run.dataset, machine.datasets):
                if folder := dataset.keys.source.folder:
                    folder_files.link(folder, machine.image_folder(dataset))

    def _print_plan(self) -> None:
        """Print what captioners would be asked after a dry run."""
        if not self._machine.is_dry_run:
            return
        pending = self._machine.pending
        # A damaged table, which a run reports.
        with contextlib.suppress(UserError):
            for dataset in self._run.datasets:
                self._print(estimate.lines(dataset, pending))

    def finish(self) -> None:
        """Print where the results are, after the last lines of Snakemake, and free the disk."""
        for dataset in self._run.datasets:
            shutil.rmtree(
                jobs.shared_folder(dataset, "decoded"), ignore_errors=True
            )
        lines = finished(self._run, self._machine.outputs)
        atexit.register(self._print, [*lines])

    def report_failures(self) -> None:
        """Print the error messages of failed jobs last, also with --quiet."""
        failures = [
            failure(
                job.rule.name, dict(job.wildcards.items()), job.log, self._began
            )
            for job in self._machine.failed
        ]
        lines = ["", *([STALE] if self._stale else []), *failures]
        atexit.register(print, *lines, sep="\n", file=sys.stderr, flush=True)

    def _print(self, lines: Iterable[str]) -> None:
        """Print to stderr as Snakemake does, but not with `--quiet all`."""
        if not self._machine.is_quiet:
            print("", *lines, sep="\n", file=sys.stderr, flush=True)


def finished(run: Run, outputs: Collection[str]) -> Iterator[str]:
    """Yield the places of the results, and the next commands, by the outputs of all jobs."""
    for dataset in run.datasets:
        name, results = dataset.name, dataset.folder
        quoted = shlex.quote(results)
        page = f"{results}/report{run.suffix}.html"
        if page in outputs:
            yield f"{name}: the page is {page}."
        proposal = f"{results}/{PROPOSAL}"
        if proposal in outputs and not read_object(proposal)["actions"]:
            yield f"Next, to check the proposed classes: latteclip classes {quoted}"
        labels = f"{results}/fused_labels.parquet"
        if labels in outputs:
            yield f"{name}: the labels are in {labels}."
            report = fusion_report.read_fusion_report(
                Path(results, fusion_report.NAME)
            )
            if right := report.labels_right:
                yield f"{name}: {in_words(right)}"
            else:
                yield f"Next, to improve and check them: latteclip teach {quoted}"
            export = f"latteclip labels export {quoted} --format csv --output labels.csv"
            yield f"Next, to use them: {export}"
        models = (
            f"{results}/model{run.suffix}",
            f"{results}/image_prototypes/seed0/model",
        )
        model = next((model for model in models if model in outputs), None)
        if model:
            predict = f"latteclip predict {shlex.quote(model)} new-photos"
            yield f"Next, to classify the images of a folder new-photos: {predict}"


def mark_stale(page: Path, command: str) -> None:
    """Say at the top of a page in HTML or Markdown that it is older than its data."""
    if page.suffix not in (".html", ".md"):
        return
    text = page.read_text("utf-8")
    if OLD_PAGE in text:  # by a run before
        return
    note = f"\n<p><strong>{OLD_PAGE} <code>{html.escape(command)}</code></strong></p>\n\n"
    is_html = page.suffix == ".html"
    write_text(
        page, text.replace(MAIN, MAIN + note, 1) if is_html else note + text
    )


def failure(
    rule: str, wildcards: Mapping[str, str], logs: Sequence[str], began: float
) -> str:
    """Return the error message of a job that failed or was stopped, from its last log.

    A job that a cluster refused has none since the run `began`, in seconds of the epoch.
    """
    job = f"{rule} ({status.in_words(wildcards)})"
    written = [
        log
        for log in logs
        if os.path.isfile(log) and os.path.getmtime(log) >= began
    ]
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
    for line in text.splitlines():
        if line.startswith(STOPPED):
            return f"{job}: {one_line(line)}"
    return f"{ERROR}{job} ended without a message, as jobs do that are killed. The log is {log}."


def _shorten_plan(record: Any) -> None:
    """Leave a job of a dry run its files, its wildcards, and why it will run."""
    record.log, record.jobid, record.benchmark, record.priority = [], None, None, 0
    record.reason = OF_FILES.sub("", record.reason)


class JobLines(logging.Filter):
    """Lets a run print warnings and errors, and prints a line for each job that begins."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def filter(self, record: Any) -> bool:
        event = getattr(record, "event", None)
        if not self._machine.runs_jobs:
            if event == LogEvent.JOB_INFO:
                _shorten_plan(record)
                if not self._machine.is_cluster:
                    record.resources = {}
            return not str(record.msg).startswith(REASONS)
        if event == LogEvent.JOB_INFO:
            now = time.strftime("%H:%M:%S")
            words = status.in_words(dict(record.wildcards or {})) or status.SHARED
            print(
                f"{now}  {record.rule_name} ({words})", file=sys.stderr, flush=True
            )
        if event == LogEvent.JOB_ERROR:  # jobs that failed are reported at the end
            return str(record.rule_msg).startswith(REFUSED)
        text = str(record.msg)
        if event not in (None, LogEvent.ERROR) or OF_FAILED.search(text):
            return False
        is_urgent = record.levelno >= logging.WARNING
        return is_urgent or text.startswith(NOTHING)
