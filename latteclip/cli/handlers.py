"""What happens at the start and the end of a run of the workflow.

Handlers of a module run if the other workflow's handlers call them (docs/cluster.md).
"""

import atexit
import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from latteclip.cli import estimate, run_messages, runs
from latteclip.cli.machine import Machine
from latteclip.cli.rules import workflow_errors
from latteclip.config import checks, jobs, resources
from latteclip.config.labellers import askings
from latteclip.config.resolve import Run
from latteclip.core import run_options
from latteclip.core.errors import UserError
from latteclip.core.files import edited_classes
from latteclip.core.terminal import paint


class Handlers:
    """The handlers of the Snakefile."""

    def __init__(self, config: Mapping[str, Any], run: Run, machine: Machine) -> None:
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
            runs.refuse_second_run()  # Snakemake's lock sees live runs only
            checks.refuse_unanswered(run, pending, has_gpus=self._machine.has_gpus)
        self._link_folders()
        runs.note_run()
        if not self._machine.is_module:
            # Options of a module would be those of the other workflow.
            whole = {dataset.name: dataset.whole for dataset in run.datasets}
            run_options.note_options(whole, self._config)
        lines = run_messages.started(run, pending)
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
        lines = run_messages.finished(self._run, self._machine.outputs)
        atexit.register(self._print, [*lines, *self._logs()])

    def report_failures(self) -> None:
        """Print the error messages of failed jobs last, also with --quiet."""
        lines = [
            run_messages.failure(job.rule.name, dict(job.wildcards.items()), job.log)
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
