"""Show which stages of each dataset are done, stale or missing, by Snakemake itself.

Where there is a cluster, its queue follows. Nothing is run or written. As a program, this module is
Snakemake's command line, whose --summary lists jobs as lines of JSON: its own has no reasons, and a
dry run no finished jobs.
"""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from latteclip.cli.commands import STAGES
from latteclip.config import layers
from latteclip.core import run_options
from latteclip.core.errors import UserError
from latteclip.core.files import is_running, read_object, write_json
from latteclip.core.terminal import counted, for_terminal, one_line, paint

RESULTS = Path("results")
SHARED = "all datasets"
COLOURS = {"done": "green", "stale": "yellow", "missing": "red"}
FOLLOWING = ("Missing output files", "Input files updated by another job")
MAX_REASON = 70  # characters
LOCKS = Path(".snakemake/locks")
LOCK_NOTE = Path(".snakemake/latteclip_run.json")
TIMEOUT = 30  # seconds: a busy controller answers slowly
# Fields of `squeue --format`. The executor writes rule and wildcards into the comment.
FIELDS = ("%i", "%T", "%r", "%M", "%l", "%Z", "%k")
RULE = re.compile(r"(?:rule|group)_(.+?)(?:_wildcards_(.+))?")
Job = dict[str, Any]  # see `summary`
log = logging.getLogger(__name__)


def status(
    datasets: Sequence[str] = (),
    /,
    config: Sequence[str] = (),
    configfile: Sequence[str] = (),
    estimate: bool = False,
) -> None:
    """Show which stages are done, stale or missing, and why.

    Run it in the folder of the results. Without options, those of a dataset's last run apply.

    Args:
        datasets: keys of datasets (default: all with results, otherwise the configured dataset)
        config: KEY=VALUE, as snakemake takes it: method=latteclip seeds=5
        estimate: print hours, tokens and disk of the full run instead, estimated from a run with
            limit=N
    """
    if estimate:
        from latteclip.cli import estimate as estimates

        print(for_terminal(estimates.estimate(datasets, config, configfile)))
        return
    names = [Path(dataset).name for dataset in datasets]
    if not (names or configfile or any(pair.startswith("dataset=") for pair in config)):
        known = dict.fromkeys([*layers.datasets(), *run_options.noted_datasets()])
        names = [key for key in known if (RESULTS / key).is_dir()]
    jobs: dict[str, Job] = {}  # by their outputs: datasets share some
    for options in _options(names, config, configfile):
        for job in _jobs(options):
            jobs.setdefault(job["outputs"], job)
    in_order = sorted(jobs.values(), key=lambda job: job["order"])
    print(*_lock(), *_table(in_order), *_queue(), sep="\n")


def _options(
    names: Sequence[str], config: Sequence[str], configfiles: Sequence[str]
) -> Iterator[list[str]]:
    """Yield options of Snakemake, once for all datasets that were last run with the same ones."""
    datasets: dict[tuple[str, ...], list[str]] = {} if names else {tuple(config): []}
    for name in names:
        pairs, key = tuple(config), name
        noted = run_options.read_options(name)
        if noted and not (config or configfiles):
            noted.pop("dataset", None)
            pairs = tuple(run_options.pairs(noted))
            key = name.removesuffix(f"_{noted.get('limit')}")
        datasets.setdefault(pairs, []).append(key)
    files = ["--configfile", *configfiles] if configfiles else []
    for pairs, keys in datasets.items():
        words = [*pairs, f"dataset={json.dumps(keys)}"] if keys else [*pairs]
        yield [*files, "--config", *words] if words else files


def _lock() -> Iterator[str]:
    program = "snakemake" if run_options.has_own_workflow() else "latteclip workflow"
    if sentence := describe_lock(f"{program} --unlock"):
        yield f"{paint('lock', 'bold', sys.stdout)}: {sentence}\n"


def _queue() -> Iterator[str]:
    title = paint("SLURM queue", "bold", sys.stdout)
    try:
        if jobs := queue():
            yield f"{title}: {counted(len(jobs), 'job')}"
        yield from (f"  job {job.id:9}  {job.name:40}  {job.state}" for job in jobs)
    except UserError as error:
        yield f"{title}: {error}"


def _jobs(options: Sequence[str]) -> Iterator[Job]:
    """Yield the jobs, or raise UserError with the message of Snakemake."""
    package = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    workflow = [] if run_options.has_own_workflow() else package
    program = [sys.executable, "-m", "latteclip.cli.status", "--nocolor"]
    run = subprocess.run(
        [*program, *workflow, *options], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise UserError(f"Snakemake failed: {run.stderr.strip()}")
    return (json.loads(line) for line in run.stdout.splitlines() if line.startswith("{"))


async def summary(dag: Any, detailed: bool = False) -> AsyncIterator[str]:
    """Yield each job that writes files as JSON, in place of `DAG.summary`."""
    stages = list(STAGES)
    for job in dag.jobs:
        if not job.output:
            continue
        reason = dag.reason(job)
        wildcards = dict(job.wildcards.items())
        exists = all(
            [file in job.temp_output or await file.exists() for file in job.output]
        )
        rule = job.rule.name
        name = rule.removesuffix("_shard")
        stage = stages.index(name) if name in stages else len(stages)
        dataset = wildcards.get("dataset", SHARED)
        values = {
            "order": ["dataset" not in wildcards, dataset, stage, str(wildcards)],
            "dataset": dataset,
            "rule": rule,
            "method": wildcards.get("method", ""),
            "seed": wildcards.get("seed"),
            "outputs": str(job.output),
            "state": ("stale" if reason else "done") if exists else "missing",
            "why": _why(reason, exists=exists),
        }
        yield json.dumps(values)


def _why(reason: Any, *, exists: bool) -> str:
    """Return a short reason, without missing outputs and inputs that other jobs will update."""
    if not reason:
        return "" if exists else "not needed"
    parts = str(reason).split("; ")
    if parts[0].startswith("Params have changed"):
        return "settings or code changed"
    late = "an earlier stage will run" if exists else "not run yet"
    text = next((part for part in parts if not part.startswith(FOLLOWING)), late)
    return one_line(text.replace(" since last execution", ""), MAX_REASON)


def _table(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield a block per dataset, with a line for the jobs of a rule, method and state."""
    for name, of_dataset in groupby(jobs, key=lambda job: str(job["dataset"])):
        lines: dict[tuple[str, ...], list[str]] = {}  # seeds
        n_done = n = 0
        for job in of_dataset:
            n += 1
            n_done += job["state"] == "done"
            key = (job["rule"], job["method"], job["state"], job["why"])
            lines.setdefault(key, []).extend(filter(None, [job["seed"]]))
        title = paint(for_terminal(name), "bold", sys.stdout)
        yield f"{title}: {n_done} of {n} jobs done"
        for (rule, run, state, why), seeds in lines.items():
            if seeds:
                run += f", {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}"
            coloured = paint(f"{state:7}", COLOURS[state], sys.stdout)
            yield f"  {coloured}  {rule:22}  {run:34}  {why}".rstrip()
        yield ""


# Other runs in this folder: Snakemake's lock, and jobs in SLURM's queue.


def note_run() -> None:
    """Note which process the lock of the current folder belongs to: the lock itself does not."""
    write_json(LOCK_NOTE, {"host": socket.gethostname(), "process": os.getpid()})


def describe_lock(unlock: str) -> str | None:
    """Return the sentence on the lock of the current folder, with the command that removes it."""
    if not any(LOCKS.glob("*.lock")):
        return None
    run = read_object(LOCK_NOTE, ("host", "process")) if LOCK_NOTE.is_file() else {}
    if run.get("host") == socket.gethostname() and is_running(int(run["process"])):
        return f"A run works in this folder: process {run['process']} on this machine."
    return f"A run works here from another machine, or was killed: then remove the lock: {unlock}"


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


if __name__ == "__main__":
    from snakemake import cli
    from snakemake.dag import DAG

    DAG.summary = summary
    cli.main(["--summary", *sys.argv[1:]])
