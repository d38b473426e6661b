"""What a run of the workflow prints: a line for each long stage. Snakemake's log has the rest."""

import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from latteclip.core.terminal import SHORT

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
# Beginnings of what Snakemake says of its machine before a run.
OF_MACHINE = ("Building", "Using shell", "Group jobs", "Conda", "Singularity")


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
