"""Jobs of this workflow in the queue of a SLURM cluster, as `squeue` lists them."""

import logging
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latteclip.core.errors import UserError

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
    return _read(run.stdout, Path(folder).resolve())


def _read(text: str, folder: Path) -> list[QueuedJob]:
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
