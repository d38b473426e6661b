"""Other runs in this folder: Snakemake's lock, options of the last run, jobs in SLURM's queue."""

import logging
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.files import read_object, write_json

FOLDER = Path(".snakemake")
LOCKS = FOLDER / "locks"
LOCK_NOTE = FOLDER / "latteclip_run.json"
OPTION_NOTES = FOLDER / "latteclip_options"
TIMEOUT = 30  # seconds: a busy controller answers slowly
# Of `squeue --format`. The executor writes rule and wildcards into the comment.
FIELDS = ("%i", "%T", "%r", "%M", "%l", "%Z", "%k")
RULE = re.compile(r"(?:rule|group)_(.+?)(?:_wildcards_(.+))?")
log = logging.getLogger(__name__)


def note_run() -> None:
    """Note which process the lock of the current folder belongs to: the lock itself does not."""
    write_json(LOCK_NOTE, {"host": socket.gethostname(), "process": os.getpid()})


def describe_lock(unlock: str) -> str | None:
    """Return the sentence on the lock of the current folder, with the command that removes it."""
    taken = [path.stat().st_mtime for path in LOCKS.glob("*.lock")]
    if not taken:
        return None
    owner = "a run that is just starting, or was killed then"
    # A note that is older than the lock is of an earlier run.
    if LOCK_NOTE.is_file() and LOCK_NOTE.stat().st_mtime >= max(taken):
        run = read_object(LOCK_NOTE, ("host", "process"))
        owner = f"process {run['process']} on {run['host']}"
        if run["host"] == socket.gethostname():
            if Path("/proc", str(run["process"])).exists():
                return f"A run works in this folder: {owner}, this machine."
            owner += ", which is gone"
    return (
        f"Snakemake's lock of this folder is of {owner}. If no run works here, remove the lock: "
        f"{unlock}"
    )


def note_options(
    datasets: Mapping[str, str], config: Mapping[str, Any], deployment: Sequence[str]
) -> None:
    """Note the options of a run, for `latteclip status`.

    Args:
        datasets: keys below results, and those that the configuration names.
        config: --config laid over the contents of --configfile.
        deployment: --sdm.
    """
    values = {
        "config": {**config, "dataset": list(datasets.values())},
        "deployment": sorted(deployment),
    }
    for dataset in datasets:
        write_json(OPTION_NOTES / f"{dataset}.json", values)


def read_options(dataset: str) -> dict[str, Any] | None:
    """Return `config` and `deployment` of the last run of a dataset, if there was one."""
    path = OPTION_NOTES / f"{dataset}.json"
    return read_object(path, ("config", "deployment"), "delete it") if path.is_file() else None


def noted_datasets() -> list[str]:
    """Return the datasets that have been run here."""
    return sorted(path.stem for path in OPTION_NOTES.glob("*.json"))


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs."""

    id: str
    state: str  # PENDING, RUNNING, ...
    reason: str  # why it waits, in SLURM's word
    elapsed: str
    limit: str
    name: str  # rule and wildcards

    def __str__(self) -> str:
        if self.state == "PENDING":
            return f"waits: {self.reason}"
        return f"{self.state.lower()} for {self.elapsed} of {self.limit}"


def queue() -> list[QueuedJob]:
    """Return the user's jobs of workflows that run here, by a SLURM cluster if there is one.

    Raises:
        UserError: SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--format", "\t".join(FIELDS)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except subprocess.TimeoutExpired:
        raise UserError(f"squeue gave no answer in {TIMEOUT} s; is the cluster up?") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise UserError(f"squeue fails: {lines[-1]}") from None
    jobs = []
    for line in run.stdout.splitlines():
        number, state, reason, elapsed, limit, working_folder, comment = line.split("\t")
        rule = RULE.fullmatch(comment)
        if rule and Path(working_folder).resolve() == Path.cwd():
            name = " ".join(filter(None, rule.groups()))
            jobs.append(QueuedJob(number, state, reason, elapsed, limit, name))
    return jobs


def refuse_second_run() -> None:
    """Raise UserError where jobs of another run still work in the current folder."""
    try:
        jobs = queue()
    except UserError as error:
        log.warning("Jobs of earlier runs were not looked for: %s", error)
        return
    if jobs:
        raise UserError(
            f"SLURM still has {len(jobs)} jobs of another run in this folder, the first is "
            f"{jobs[0].name} (job {jobs[0].id}, {jobs[0]}). Wait for that run; if its snakemake is "
            f"gone, wait for the jobs or end them: scancel {' '.join(job.id for job in jobs)}"
        )
