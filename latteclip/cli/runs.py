"""Other runs in this folder: Snakemake's lock, options of the last run, jobs in SLURM's queue."""

import logging
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

from latteclip.core.errors import UserError
from latteclip.core.files import is_running, read_object, write_json

FOLDER = Path(".snakemake")
LOCKS = FOLDER / "locks"
LOCK_NOTE = FOLDER / "latteclip_run.json"
TIMEOUT = 30  # seconds: a busy controller answers slowly
# Fields of `squeue --format`. The executor writes rule and wildcards into the comment.
FIELDS = ("%i", "%T", "%r", "%M", "%l", "%Z", "%k")
RULE = re.compile(r"(?:rule|group)_(.+?)(?:_wildcards_(.+))?")
log = logging.getLogger(__name__)


def note_run() -> None:
    """Note which process the lock of the current folder belongs to: the lock itself does not."""
    write_json(LOCK_NOTE, {"host": socket.gethostname(), "process": os.getpid()})


def describe_lock(unlock: str) -> str | None:
    """Return the sentence on the lock of the current folder, with the command that removes it."""
    taken = max((path.stat().st_mtime for path in LOCKS.glob("*.lock")), default=None)
    if taken is None:
        return None
    owner = "a run that is just starting, or was killed then"
    # A note that is older than the lock is of an earlier run.
    if LOCK_NOTE.is_file() and LOCK_NOTE.stat().st_mtime >= taken:
        run = read_object(LOCK_NOTE, ("host", "process"))
        owner = f"process {run['process']} on {run['host']}"
        if run["host"] == socket.gethostname() and is_running(int(run["process"])):
            return f"A run works in this folder: {owner}, this machine."
    return f"The lock is of {owner}. If no run works here, remove the lock: {unlock}"


class QueuedJob(NamedTuple):
    """A job of a workflow that waits or runs."""

    id: str
    name: str  # rule and wildcards
    state: str  # waits: Resources


def queue() -> list[QueuedJob]:
    """Return the jobs of workflows in this folder, or raise UserError if SLURM does not answer."""
    if shutil.which("squeue") is None:
        return []
    jobs = []
    lines = output_of(
        "squeue",
        "--me",
        "--noheader",
        "--format",
        "\t".join(FIELDS),
        remedy="is the cluster up?",
    )
    for line in lines:
        number, state, reason, elapsed, limit, working_folder, comment = line.split("\t")
        rule = RULE.fullmatch(comment)
        if rule and Path(working_folder).resolve() == Path.cwd():
            runs = f"{state.lower()} for {elapsed} of {limit}"
            text = f"waits: {reason}" if state == "PENDING" else runs
            jobs.append(QueuedJob(number, " ".join(filter(None, rule.groups())), text))
    return jobs


def refuse_second_run() -> None:
    """Raise UserError where jobs of another run still work in the current folder."""
    try:
        jobs = queue()
    except UserError as error:
        log.warning("Jobs of earlier runs were not looked for: %s", error)
        return
    if jobs:
        number, name, state = jobs[0]
        raise UserError(
            f"SLURM still has {len(jobs)} jobs of another run in this folder, the first is {name} "
            f"(job {number}, {state}). Wait for that run; if its snakemake is gone, wait for the "
            f"jobs or end them: scancel {' '.join(job.id for job in jobs)}"
        )


def drop_backups(folder: Path) -> None:
    """Remove the copies of outputs that an interrupted run left in Snakemake's folder.

    Snakemake makes them of outputs that a job may leave as they are, and fails where a copy is
    there already. Nothing is removed while a run has locked its files.
    """
    locks = folder / "locks"
    is_locked = locks.is_dir() and any(locks.iterdir())
    if not is_locked:
        shutil.rmtree(folder / "backups", ignore_errors=True)


def output_of(*command: str, remedy: str, timeout: float = TIMEOUT) -> list[str]:
    """Return the lines that a program prints, or raise UserError with the last one if it fails."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=True
        )
    except subprocess.TimeoutExpired:
        problem = f"no answer in {timeout} s"
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip()).splitlines()
        problem = lines[-1].strip() if lines else f"exit status {error.returncode}"
    else:
        return run.stdout.splitlines()
    raise UserError(f"{Path(command[0]).name} fails ({problem}); {remedy}")
