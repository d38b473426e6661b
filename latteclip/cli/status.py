"""Show which stages of each dataset are done, stale or missing, by Snakemake itself.

What the stages took comes from Snakemake's benchmark files. Where there is a cluster, its queue
follows. Nothing is run or written. As a program, this module is Snakemake's command line, whose
--summary lists jobs as lines of JSON: its own has no reasons, and a dry run no finished jobs.
"""

import ast
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.cli import runs
from latteclip.cli.commands import STAGES
from latteclip.config import layers
from latteclip.core import run_options
from latteclip.core.errors import UserError
from latteclip.core.terminal import counted, for_terminal, one_line, paint
from latteclip.report.runs import JobCost, asked, job_costs, total

RESULTS = Path("results")
SHARED = "all datasets"
COLOURS = {"done": "green", "stale": "yellow", "missing": "red"}
FOLLOWING = ("Missing output files", "Input files updated by another job")
MAX_REASON = 70  # characters
# The beginning of an error of Snakemake.
HEAD = re.compile(r"^(?:\w*(?:Error|Exception)\b.*:$|\S+: error:)", re.MULTILINE)
PLACE = re.compile(r'^ *File ".*$', re.MULTILINE)


def status(
    datasets: Sequence[str] = (),
    /,
    config: Sequence[str] = (),
    configfile: Sequence[str] = (),
    estimate: bool = False,
    json_output: bool = False,
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

        text = estimates.estimate(datasets, config, configfile, json_output=json_output)
        print(for_terminal(text))
        return
    names = [Path(dataset).name for dataset in datasets]
    names_some = bool(configfile) or any(pair.startswith("dataset=") for pair in config)
    if not names and not names_some:
        known = dict.fromkeys([*layers.datasets(), *run_options.noted_datasets()])
        names = [key for key in known if (RESULTS / key).is_dir()]
    frames = [_jobs(options) for options in _options(names, config, configfile)]
    jobs = pd.concat(frames).drop_duplicates("outputs")  # datasets share some
    jobs = jobs.sort_values(["is_shared", "dataset", "stage", "wildcards"])
    if json_output:
        print(for_terminal(json.dumps(_as_json(jobs), indent=2)))
        return
    print(*_lock(), *_table(jobs), *_queue(), sep="\n")


def _options(
    names: Sequence[str],
    config: Sequence[str],
    configfiles: Sequence[str],
) -> Iterator[list[str]]:
    """Yield options of Snakemake, once for all datasets that were last run with the same ones."""
    given = (tuple(configfiles), tuple(config))
    datasets: dict[tuple[tuple[str, ...], ...], list[str]] = {} if names else {given: []}
    for name in names:
        noted = None if config or configfiles else run_options.read_options(name)
        if noted is None:
            if given == ((), ()):
                _refuse_unknown(name)
            datasets.setdefault(given, []).append(name)
            continue
        values = {key: value for key, value in noted.items() if key != "dataset"}
        pairs = tuple(run_options.pairs(values))
        options = ((), pairs)
        limit = values.get("limit")
        suffix = "" if limit is None else f"_{limit}"
        datasets.setdefault(options, []).append(name.removesuffix(suffix))
    for (files, pairs), keys in datasets.items():
        if keys:
            pairs += (f"dataset={json.dumps(keys)}",)
        flags = {"--configfile": files, "--config": pairs}
        yield [word for flag, words in flags.items() if words for word in (flag, *words)]


def _refuse_unknown(name: str) -> None:
    """Raise UserError for a dataset that only limited runs know."""
    limited = [
        noted
        for noted in run_options.noted_datasets()
        if re.fullmatch(rf"{re.escape(name)}_\d+", noted)
    ]
    if limited and name not in layers.datasets():
        raise UserError(
            f"{name} was run with a limit only: latteclip status {limited[-1]} shows that run, and "
            f"latteclip status {name} --estimate what the whole takes."
        )


def _as_json(jobs: pd.DataFrame) -> dict[str, Any]:
    """Return the lock, the queue, and the jobs and costs of each dataset for programs."""
    datasets = []
    for name, of_dataset in jobs.groupby("dataset", sort=False):
        columns = of_dataset[["rule", "method", "seed", "state", "why", "outputs"]]
        rows = columns.astype(object).where(columns.notna(), None).to_dict("records")
        for row in rows:
            row["outputs"] = row["outputs"].split()
        costs = [_cost_values(job) for job in job_costs(RESULTS / str(name))]
        datasets.append({"dataset": name, "jobs": rows, "costs": costs})
    queue: list[dict[str, str]] | None = None
    with contextlib.suppress(UserError):  # the cluster does not answer
        queue = [job._asdict() for job in runs.queue()]
    return {"lock": _lock_sentence(), "queue": queue, "datasets": datasets}


def _cost_values(job: JobCost) -> dict[str, Any]:
    return {
        "rule": job.rule,
        "run": job.run,
        "seconds": job.seconds,
        "cpu_seconds": job.cpu_seconds,
        "gpu_seconds": job.gpu_seconds,
        "memory_mib": job.memory,
    }


def _lock_sentence() -> str | None:
    program = "snakemake" if run_options.has_own_workflow() else "latteclip workflow"
    return runs.describe_lock(f"{program} --unlock")


def _lock() -> Iterator[str]:
    if sentence := _lock_sentence():
        yield f"{paint('lock', 'bold', sys.stdout)}: {sentence}\n"


def _queue() -> Iterator[str]:
    title = paint("SLURM queue", "bold", sys.stdout)
    try:
        if jobs := runs.queue():
            yield f"{title}: {counted(len(jobs), 'job')}"
        yield from (f"  job {job.id:9}  {job.name:40}  {job.state}" for job in jobs)
    except UserError as error:
        yield f"{title}: {error}"


def _jobs(options: Sequence[str]) -> pd.DataFrame:
    """Return the jobs (see `summary`), or raise UserError with the message of Snakemake."""
    package = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    workflow = [] if run_options.has_own_workflow() else package
    command = [
        sys.executable,
        "-m",
        "latteclip.cli.status",
        "--nocolor",
        *workflow,
        *options,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        message = PLACE.sub("", HEAD.split(run.stderr)[-1])
        raise UserError(f"Snakemake failed: {one_line(message)}")
    lines = (line for line in run.stdout.splitlines() if line.startswith("{"))
    return pd.DataFrame(map(json.loads, lines))


async def summary(dag: Any, detailed: bool = False) -> AsyncIterator[str]:
    """Yield each job that writes files as JSON, in place of `DAG.summary`."""
    order = {rule: number for number, rule in enumerate(STAGES)}
    for job in dag.jobs:
        if job.output:
            reason = dag.reason(job)
            wildcards = dict(job.wildcards.items())
            exists = all(
                [file in job.temp_output or await file.exists() for file in job.output]
            )
            values = {
                "is_shared": "dataset" not in wildcards,
                "dataset": wildcards.get("dataset", SHARED),
                "stage": order.get(job.rule.name.removesuffix("_shard"), len(order)),
                "rule": job.rule.name,
                "method": wildcards.get("method", ""),
                "seed": wildcards.get("seed"),
                "wildcards": str(wildcards),
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
        changes = reason.params_changed
        text = f"settings changed{changed_settings(changes.only_old, changes.only_new)}"
    else:
        late = "an earlier stage will run" if exists else "not run yet"
        text = next((part for part in parts if not part.startswith(FOLLOWING)), late)
    return one_line(text.replace(" since last execution", ""), MAX_REASON)


def changed_settings(before: Iterable[str], now: Iterable[str]) -> str:
    """Return `: key old -> new` for each changed key of parameters, as Python writes them.

    Of a parameter that is not a JSON object, such as a prompt, only the new value is given.
    """
    old = dict(_settings(before))
    parts = []
    for key, value in dict(_settings(now)).items():
        if key in old and old[key] == value:
            continue
        if value is None:
            parts.append(f"now {key}")
        else:
            parts.append(f"{key} {old.get(key, 'unset')} -> {value}")
    return f": {', '.join(parts)}" if parts else ""


def _settings(parameters: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield dotted keys and values of JSON objects among parameters, and other texts with None."""
    for parameter in parameters:
        text = str(ast.literal_eval(parameter))
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield json.dumps(text, ensure_ascii=False), None


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value, ensure_ascii=False)


def _table(jobs: pd.DataFrame) -> Iterator[str]:
    """Yield a block per dataset, with a line for the jobs of a rule, method and state."""
    for name, of_dataset in jobs.groupby("dataset", sort=False):
        done = (of_dataset["state"] == "done").sum()
        title = paint(for_terminal(str(name)), "bold", sys.stdout)
        yield f"{title}: {done} of {len(of_dataset)} jobs done"
        alike = of_dataset.groupby(["rule", "method", "state", "why"], sort=False)
        for key, seeds in alike["seed"]:
            rule, run, state, why = map(str, key)
            numbers = list(seeds.dropna())
            if numbers:
                word = "seed" if len(numbers) == 1 else "seeds"
                run += f", {word} {', '.join(numbers)}"
            coloured = paint(f"{state:7}", COLOURS[state], sys.stdout)
            line = f"  {coloured}  {rule:22}  {run:34}  {why}"
            yield line.rstrip()
        yield from _costs(RESULTS / str(name))
        yield ""


def _costs(folder: Path) -> Iterator[str]:
    """Yield the time and memory of the last jobs of a dataset, in all and by stage."""
    jobs = job_costs(folder)
    if not jobs:
        return
    yield f"  {paint('took', 'bold', sys.stdout)}: {_cost(jobs)}"
    for table, used in asked(folder):
        yield f"  {'asked':7}  {table:22}  {used.in_words}"
    for stage in dict.fromkeys(job.rule for job in jobs):
        of_stage = [job for job in jobs if job.rule == stage]
        yield f"  {'':7}  {stage:22}  {_cost(of_stage)}"


def _cost(jobs: Sequence[JobCost]) -> str:
    cost = total(jobs)
    times = {"": cost.seconds, "CPU ": cost.cpu_seconds, "GPU ": cost.gpu_seconds}
    parts = [counted(len(jobs), "job")]
    for name, seconds in times.items():
        if seconds:
            parts.append(f"{name}{timedelta(seconds=round(seconds))}")
    if cost.memory:
        parts.append(f"{cost.memory:,.0f} MiB")
    return ", ".join(parts)


if __name__ == "__main__":
    from snakemake import cli
    from snakemake.dag import DAG

    DAG.summary = summary
    cli.main(["--summary", *sys.argv[1:]])
