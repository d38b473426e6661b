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

import psutil

from latteclip.core.errors import UserError
from latteclip.core.files import read_object, write_json

FOLDER = Path(".snakemake")
LOCKS = FOLDER / "locks"
LOCK_NOTE = FOLDER / "latteclip_run.json"
LOCK_KEYS = ("host", "process", "started")
CLOCK = 2.0  # seconds by which two answers to when a process began may differ


OPTION_NOTES = FOLDER / "latteclip_options"
log = logging.getLogger(__name__)
TIMEOUT = 30  # seconds: a busy controller answers slowly
# Of `squeue --format`; the executor writes rule and wildcards into the comment.
FIELDS = ("%i", "%T", "%r", "%M", "%l", "%Z", "%k")
RULE = re.compile(r"(?:rule|group)_(.+?)(?:_wildcards_(.+))?")
# What SLURM calls the reasons for which a job waits, and what they mean for its owner.
REASONS = {
    "AssocGrpGRES": "your account uses all the GPUs that it may",
    "BadConstraints": "no node is like that: correct the profile and start it again",
    "BeginTime": "it was put back into the queue and starts again in a moment",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "it is held: scontrol release lets it go",
    "PartitionDown": "its partition is down",
    "PartitionTimeLimit": "it wants more time than its partition allows: lower its runtime in the "
    "profile and start it again",
    "Priority": "others come first",
    "QOSMaxGRESPerUser": "you use all the GPUs that you may",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as you may",
    "ReqNodeNotAvail": "the nodes that could take it are down or reserved",
    "Resources": "all nodes that could take it are busy",
}


def note_run() -> None:
    """Note which process the lock of the current folder belongs to."""
    process = psutil.Process()
    values = (socket.gethostname(), process.pid, process.create_time())
    write_json(LOCK_NOTE, dict(zip(LOCK_KEYS, values, strict=True)))


def describe_lock(unlock: str) -> str | None:
    """The sentence on the lock of the current folder; None where there is none.

    Args:
        unlock: the command that removes it.
    """
    taken = [path.stat().st_mtime for path in LOCKS.glob("*.lock")]
    if not taken:
        return None
    # Older than the lock, it is of a run before.
    run = _lock_owner() if LOCK_NOTE.is_file() and LOCK_NOTE.stat().st_mtime >= max(taken) else None
    if run is None:
        return (
            "A run that is just starting, or was killed then, holds Snakemake's lock of this "
            f"folder. If no snakemake works here, remove the lock: {unlock}"
        )
    whose = f"process {run['process']} on {run['host']}"
    if run["host"] != socket.gethostname():
        return (
            f"A run, {whose}, holds Snakemake's lock of this folder. If it no longer works there, "
            f"remove the lock: {unlock}"
        )
    if _is_running(run["process"], run["started"]):
        return f"A run works in this folder: {whose}, this machine."
    return f"The run that held Snakemake's lock, {whose}, is gone. Remove the lock: {unlock}"


def _lock_owner() -> dict[str, Any] | None:
    try:
        run = read_object(LOCK_NOTE, LOCK_KEYS)
    except UserError:
        return None
    fits = isinstance(run["process"], int) and isinstance(run["started"], (int, float))
    return run if fits else None


def _is_running(number: int, started: float) -> bool:
    """Whether that process, and no later one of its number, is there and no zombie."""
    try:
        process = psutil.Process(number)
        began: float = process.create_time()
        return abs(began - started) <= CLOCK and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:  # another user's
        return True


@dataclass(frozen=True)
class Options:
    """What a run was given beside its dataset."""

    config: Mapping[str, Any]  # --config laid over the contents of --configfile
    deployment: Sequence[str]  # --sdm


def note_options(
    datasets: Mapping[str, str], config: Mapping[str, Any], deployment: Sequence[str]
) -> None:
    """Note the options of a run of some datasets.

    Args:
        datasets: keys below results, and those that the configuration names.
        config: --config laid over the contents of --configfile.
        deployment: --sdm.
    """
    asked = list(datasets.values())
    values = {"config": {**config, "dataset": asked}, "deployment": sorted(deployment)}
    for dataset in datasets:
        write_json(OPTION_NOTES / f"{dataset}.json", values)


def read_options(dataset: str) -> Options | None:
    """The options of the last run of a dataset; None where none was noted."""
    path = OPTION_NOTES / f"{dataset}.json"
    if not path.is_file():
        return None
    try:
        values = read_object(path, ("config", "deployment"))
    except UserError:  # a note that is damaged is as good as none
        return None
    return Options(values["config"], values["deployment"])


def noted_datasets() -> list[str]:
    """Return the datasets whose last run was noted."""
    return sorted(path.stem for path in OPTION_NOTES.glob("*.json"))


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs."""

    id: str
    state: str  # PENDING, RUNNING, ...
    reason: str  # why it waits, in SLURM's word
    elapsed: str
    limit: str
    what: str  # rule and wildcards

    def __str__(self) -> str:
        if self.state == "PENDING":
            meaning = REASONS.get(self.reason)
            return f"waits: {meaning} ({self.reason})" if meaning else f"waits: {self.reason}"
        return f"{self.state.lower()} for {self.elapsed} of {self.limit}"


def has_queue() -> bool:
    """Whether this machine can ask a SLURM cluster."""
    return shutil.which("squeue") is not None


def queue(folder: str | Path = ".") -> list[QueuedJob]:
    """One's own jobs of workflows that run in a folder.

    Raises:
        UserError: SLURM does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--format", "\t".join(FIELDS)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except subprocess.TimeoutExpired:
        raise UserError(f"squeue gave no answer in {TIMEOUT} s; is the cluster up?") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise UserError(f"squeue fails: {said[-1]}") from None
    return _parse_queue(run.stdout, Path(folder).resolve())


def _parse_queue(text: str, folder: Path) -> list[QueuedJob]:
    jobs = []
    for line in text.splitlines():
        number, state, reason, elapsed, limit, working_folder, comment = line.split("\t")
        rule = RULE.fullmatch(comment)
        if rule and Path(working_folder).resolve() == folder:
            what = " ".join(filter(None, rule.groups()))
            jobs.append(QueuedJob(number, state, reason, elapsed, limit, what))
    return jobs


def refuse_running(jobs: Sequence[QueuedJob]) -> None:
    """Raise UserError where jobs of another run still work in the folder of the one that starts."""
    if jobs:
        numbers = " ".join(job.id for job in jobs)
        raise UserError(
            f"SLURM still has {len(jobs)} jobs of another run in this folder, the first is "
            f"{jobs[0].what} (job {jobs[0].id}, {jobs[0]}). Wait for that run; if its snakemake is "
            f"gone, wait for the jobs or end them: scancel {numbers}"
        )


def refuse_second_run() -> None:
    """Raise UserError where jobs of another run still work in the current folder."""
    if not has_queue():
        return
    try:
        jobs = queue()
    except UserError as error:
        log.warning("Jobs of earlier runs were not looked for: %s", error)
        return
    refuse_running(jobs)


def log_job() -> None:
    """Say in the log which job of the cluster this is, and what it was given."""
    if number := os.environ.get("SLURM_JOB_ID"):
        log.info(
            "SLURM job %s on %s, restarted %s times; CUDA_VISIBLE_DEVICES=%s.",
            number,
            socket.gethostname(),
            os.environ.get("SLURM_RESTART_COUNT", 0),
            os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        )
