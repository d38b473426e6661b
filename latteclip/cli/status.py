"""Show which stages of each dataset are done, stale or missing, by Snakemake itself.

Nothing is run or written. As a program, this module is Snakemake's command line, whose --summary
lists jobs as lines of JSON: its own has no reasons, and a dry run no finished jobs.
"""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from latteclip.cli.main import STAGES
from latteclip.config import layers
from latteclip.core import run_options
from latteclip.core.devices import output_of
from latteclip.core.errors import UserError
from latteclip.core.terminal import for_terminal, one_line

SHARED = "all datasets"
FOLLOWING = ("Missing output files", "Input files updated by another job")
MAX_REASON = 70  # characters
# Fields of `squeue --format`: number, folder and comment.
FIELDS = ("%i", "%Z", "%k")
COMMENTS = ("rule_", "group_")  # begin the comments of Snakemake's jobs
Job = dict[str, Any]  # see `summary`
log = logging.getLogger(__name__)


def status(datasets: Sequence[str] = (), /, estimate: bool = False) -> None:
    """Show which stages are done, stale or missing, and why.

    Run it in the folder of the results. The options of a dataset's last run apply.

    Args:
        datasets: keys of datasets (default: all that were run here, otherwise the configured one)
        estimate: print hours, tokens and disk of the full run instead, estimated from a run with
            limit=N
    """
    names = [Path(dataset).name for dataset in datasets]
    if estimate:
        from latteclip.cli import estimate as estimates

        print(for_terminal(estimates.estimate(names)))
        return
    if not names:
        noted = run_options.noted_datasets()
        names = [name for name in noted if Path("results", name).is_dir()]
    jobs: dict[str, Job] = {}  # by their outputs: datasets share some
    for options in _options(names):
        for job in _jobs(options):
            jobs.setdefault(job["outputs"], job)
    in_order = sorted(jobs.values(), key=lambda job: job["order"])
    print(*_table(in_order), sep="\n")


def _options(names: Sequence[str]) -> Iterable[Sequence[str]]:
    """Return options of Snakemake: those of the last runs of datasets, or none."""
    noted = [run_options.read_options(name) or {"dataset": name} for name in names]
    runs = (("--config", *run_options.pairs(each)) for each in noted)
    return dict.fromkeys(runs) or [()]


def _jobs(options: Sequence[str]) -> Iterator[Job]:
    """Yield the jobs, or raise UserError with the message of Snakemake."""
    package = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    workflow = [] if run_options.has_own_workflow() else package
    program = [sys.executable, "-m", "latteclip.cli.status", "--nocolor"]
    program += ["--rerun-incomplete"]
    command = [*program, *workflow, *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise UserError(f"Snakemake failed: {run.stderr.strip()}")
    lines = run.stdout.splitlines()
    return (json.loads(line) for line in lines if line.startswith("{"))


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
        dataset = wildcards.pop("dataset", None)
        run = in_words(wildcards)
        values = {
            "order": [dataset is None, dataset or "", stage, run],
            "dataset": dataset or SHARED,
            "rule": rule,
            "run": run,
            "outputs": str(job.output),
            "state": ("stale" if reason else "done") if exists else "missing",
            "why": _why(reason, exists=exists),
        }
        yield json.dumps(values)


def in_words(wildcards: Mapping[str, str]) -> str:
    """Return the values of wildcards: flyp, seed 0."""
    numbers = ("seed", "shard")
    return ", ".join(
        f"{name} {value}" if name in numbers else value
        for name, value in wildcards.items()
    )


def _why(reason: Any, *, exists: bool) -> str:
    """Return a short reason, without missing outputs and inputs that other jobs will update."""
    if not reason:
        return "" if exists else "not needed"
    parts = str(reason).split("; ")
    if parts[0].startswith("Params have changed"):
        return "settings, images or code changed"
    if reason.forced:
        return "the last run ended before it"
    late = "an earlier stage will run" if exists else "not run yet"
    text = next((part for part in parts if not part.startswith(FOLLOWING)), late)
    return one_line(text.replace(" since last execution", ""), MAX_REASON)


def _table(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield a block per dataset, with a line for each job."""
    for name, group in groupby(jobs, key=lambda job: str(job["dataset"])):
        of_dataset = list(group)
        n_done = sum(job["state"] == "done" for job in of_dataset)
        yield f"{for_terminal(name)}: {n_done} of {len(of_dataset)} jobs done"
        for job in of_dataset:
            what = f"{job['state']:7}  {job['rule']:22}  {job['run']:34}  {job['why']}"
            yield f"  {what}".rstrip()
        yield ""


def refuse_second_run(*, is_cluster: bool) -> None:
    """Raise UserError where SLURM has jobs of another run in the current folder.

    Where SLURM does not answer, only a run on its cluster warns.
    """
    if shutil.which("squeue") is None:
        return
    command = ("squeue", "--me", "--noheader", "--format", "\t".join(FIELDS))
    try:
        lines = output_of(*command, remedy="is the cluster up?")
    except UserError as error:
        if is_cluster:
            log.warning("Jobs of earlier runs were not looked for: %s", error)
        return
    jobs = [line.split("\t") for line in lines]
    numbers = [
        number
        # Others are no jobs, such as what the site's own squeue says.
        for number, folder, comment in (
            job for job in jobs if len(job) == len(FIELDS)
        )
        if Path(folder).resolve() == Path.cwd() and comment.startswith(COMMENTS)
    ]
    if numbers:
        raise UserError(
            "SLURM still has jobs of another run in this folder; wait for them, or end them: "
            f"scancel {' '.join(numbers)}"
        )


if __name__ == "__main__":
    from snakemake import cli
    from snakemake.dag import DAG

    DAG.summary = summary
    # A summary takes what an unfinished run left for done.
    DAG.ignore_incomplete = property(lambda dag: False, lambda dag, value: None)
    cli.main(["--summary", *sys.argv[1:]])
