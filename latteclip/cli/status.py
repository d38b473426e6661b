"""Show which stages of each dataset are done, stale or missing, by Snakemake itself.

What the stages took comes from Snakemake's benchmark files. Where there is a cluster, its queue
follows. Nothing is run or written.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from latteclip.cli import estimate as estimates
from latteclip.cli import runs
from latteclip.cli.stages import STAGES
from latteclip.config import layers
from latteclip.core.errors import UserError
from latteclip.core.terminal import for_terminal, paint
from latteclip.report.runs import JobCost, job_costs, tokens_of, total

RESULTS = Path("results")
# The places where Snakemake looks for a workflow.
OWN_SNAKEFILES = (Path("Snakefile"), Path("workflow/Snakefile"))
SHARED = "all datasets"
COLOURS = {"done": "green", "stale": "yellow", "missing": "red"}
FOLLOWING = ("Missing output files", "Input files updated by another job")
MAX_REASON = 70  # characters of a reason


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    rule: str
    wildcards: dict[str, str]
    outputs: list[str]
    exists: bool
    reason: str  # why it is to run, in Snakemake's words
    before: list[str]  # parameters that changed, as Python writes them
    now: list[str]

    @property
    def dataset(self) -> str:
        return self.wildcards.get("dataset", SHARED)

    @property
    def state(self) -> str:
        """Return done, stale (there, but outdated) or missing."""
        if not self.exists:
            return "missing"
        return "stale" if self.reason else "done"

    @property
    def why(self) -> str:
        """Return a short reason, without missing outputs and inputs that other jobs will update."""
        if not self.reason:
            return "" if self.exists else "not needed"
        if self.reason.startswith("Params have changed"):
            text = f"settings changed{changed_settings(self.before, self.now)}"
        else:
            late = "an earlier stage will run" if self.exists else "not run yet"
            parts = self.reason.split("; ")
            text = next((part for part in parts if not part.startswith(FOLLOWING)), late)
        text = for_terminal(text.replace(" since last execution", ""))
        return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def status(
    datasets: Sequence[str] = (),
    /,
    config: Sequence[str] = (),
    configfile: Sequence[str] = (),
    sdm: Sequence[str] = (),
    estimate: bool = False,
) -> None:
    """Show which stages are done, stale or missing, and why.

    Run it in the folder of the results. Without options, those of a dataset's last run hold.

    Args:
        datasets: keys (default: those with results, else the configured one)
        config: KEY=VALUE, as snakemake takes it: method=latteclip seeds=5
        configfile: as snakemake takes it
        sdm: as snakemake takes it: conda or apptainer
        estimate: instead: hours, tokens and disk of the full run, from what a run with limit=N took
    """
    if estimate:
        print(estimates.estimate(datasets, config, configfile))
        return
    names = [Path(dataset).name for dataset in datasets]
    if not names and not configfile and not any(pair.startswith("dataset=") for pair in config):
        known = dict.fromkeys([*layers.datasets(), *runs.noted_datasets()])
        names = [key for key in known if (RESULTS / key).is_dir()]
    jobs: dict[tuple[str, ...], Job] = {}  # by their outputs: datasets share some
    for options in _options(names, config, configfile, sdm):
        jobs = {tuple(job.outputs): job for job in _jobs(options)} | jobs
    order = {rule: number for number, rule in enumerate(STAGES)}

    def place(job: Job) -> tuple[int, str]:
        return order.get(job.rule.removesuffix("_shard"), len(order)), str(job.wildcards)

    print(*_lock(), *table(sorted(jobs.values(), key=place)), *_queue(), sep="\n")


def _options(
    names: Sequence[str],
    config: Sequence[str],
    configfiles: Sequence[str],
    deployment: Sequence[str],
) -> Iterator[list[str]]:
    """Yield options of Snakemake, once for all datasets that were last run with the same ones."""
    plain: list[str] = []  # datasets that are looked at with the options given
    noted: dict[str, list[str]] = {}  # the others by the options of their last run, as JSON
    for name in names:
        options = None if config or configfiles else runs.read_options(name)
        if options is None:
            plain.append(name)
            continue
        values = {key: value for key, value in options["config"].items() if key != "dataset"}
        key = json.dumps([values, sorted(deployment or options["deployment"])], sort_keys=True)
        noted.setdefault(key, []).append(name.removesuffix(f"_{values.get('limit')}"))
    pairs = [*config, *([f"dataset={','.join(plain)}"] if plain else [])]
    asked = [] if names and not plain else [(configfiles, pairs, deployment)]
    for key, datasets in noted.items():
        values, methods = json.loads(key)
        given = {**values, "dataset": datasets}.items()
        asked.append(([], [f"{name}={json.dumps(value)}" for name, value in given], methods))
    for files, words, methods in asked:
        flags = {"--configfile": files, "--config": words, "--sdm": methods}
        yield [word for flag, each in flags.items() if each for word in (flag, *each)]


def _lock() -> Iterator[str]:
    """Yield the sentence on Snakemake's lock of this folder, if there is one."""
    unlock = "snakemake --unlock" if _has_own_workflow() else "latteclip workflow --unlock"
    if sentence := runs.describe_lock(unlock):
        yield f"{paint('lock', 'bold', sys.stdout)}: {sentence}\n"


def _queue() -> Iterator[str]:
    """Yield the jobs of this folder in the queue of a cluster, if there are any."""
    title = paint("SLURM queue", "bold", sys.stdout)
    try:
        jobs = runs.queue()
    except UserError as error:
        yield f"{title}: {error}"
        return
    if jobs:
        yield f"{title}: {len(jobs)} jobs"
        yield from (f"  job {job.id:9}  {job.name:40}  {job}" for job in jobs)


def _jobs(options: Sequence[str]) -> list[Job]:
    """Return the jobs of the workflow of this folder, or of the package's own.

    Raises:
        UserError: Snakemake failed; with its message.
    """
    package = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    workflow = [] if _has_own_workflow() else package
    command = [sys.executable, "-m", "latteclip.cli.list_jobs", "--nocolor", *workflow, *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise UserError(f"Snakemake failed: {_complaint(run.stderr)}")
    return [Job(**json.loads(line)) for line in run.stdout.splitlines() if line.startswith("{")]


def _has_own_workflow() -> bool:
    """Return whether snakemake finds a workflow in this folder by itself."""
    return any(file.is_file() for file in OWN_SNAKEFILES)


def _complaint(text: str) -> str:
    """Return the message of an error of Snakemake, without its place in the workflow."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    heads = [i for i, line in enumerate(lines) if re.match(r"\w*(Error|Exception)\b.*:$", line)]
    message = lines[heads[-1] + 1 :] if heads else lines[-3:]
    return " ".join(line for line in message if not line.startswith('File "'))


def changed_settings(before: Sequence[str], now: Sequence[str]) -> str:
    """Return `: key old -> new` for each changed key of parameters.

    Of a parameter that is not a JSON object, such as a prompt, only the new value is given.
    """
    old, new = _settings(before), _settings(now)
    parts = [
        f"now {json.dumps(key, ensure_ascii=False)}"
        if value is None
        else f"{key} {old.get(key, 'unset')} -> {value}"
        for key, value in new.items()
        if key not in old or old[key] != value
    ]
    return f": {', '.join(parts)}" if parts else ""


def _settings(parameters: Sequence[str]) -> dict[str, str | None]:
    """Return the values of the JSON objects among parameters by dotted key; None for other text."""
    found: dict[str, str | None] = {}
    for parameter in parameters:
        content = str(ast.literal_eval(parameter))
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        found |= _flatten(value) if isinstance(value, dict) else {content: None}
    return found


def _flatten(value: object, name: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {name: json.dumps(value, ensure_ascii=False)}
    found: dict[str, str] = {}
    for key, part in value.items():
        found |= _flatten(part, f"{name}.{key}" if name else key)
    return found


def table(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield a block per dataset, with a line for the jobs of a rule, method and state."""
    names = sorted({job.dataset for job in jobs}, key=lambda name: (name == SHARED, name))
    for name in names:
        own = [job for job in jobs if job.dataset == name]
        done = sum(job.state == "done" for job in own)
        title = paint(for_terminal(name), "bold", sys.stdout)
        yield f"{title}: {done} of {len(own)} jobs done"
        yield from _rows(own)
        yield from _costs(name)
        yield ""


def _costs(dataset: str) -> Iterator[str]:
    """Yield the time and memory of the last jobs of a dataset, in all and by stage."""
    folder = RESULTS / dataset
    jobs = job_costs(folder)
    if not jobs:
        return
    answers = list(tokens_of(folder))
    read, written = sum(part[1] for part in answers), sum(part[2] for part in answers)
    tokens = f", {read:,} tokens read, {written:,} written" if read or written else ""
    yield f"  {paint('took', 'bold', sys.stdout)}: {_cost(jobs)}{tokens}"
    for stage in dict.fromkeys(job.rule for job in jobs):
        yield f"  {'':7}  {stage:22}  {_cost([job for job in jobs if job.rule == stage])}"


def _cost(jobs: Sequence[JobCost]) -> str:
    """Return the cost of jobs in words."""
    cost = total(jobs)
    times = {"": cost.seconds, "CPU ": cost.cpu_seconds, "GPU ": cost.gpu_seconds}
    parts = [f"{len(jobs)} job{'s' * (len(jobs) != 1)}"]
    parts += [f"{name}{timedelta(seconds=round(t))}" for name, t in times.items() if t]
    parts += [f"{cost.memory:,.0f} MiB"] if cost.memory else []
    return ", ".join(parts)


def _rows(jobs: Sequence[Job]) -> Iterator[str]:
    seeds: dict[tuple[str, str, str, str], list[str]] = {}
    for job in jobs:
        key = (job.rule, job.wildcards.get("method", ""), job.state, job.why)
        seeds.setdefault(key, []).extend(filter(None, [job.wildcards.get("seed")]))
    for (rule, method, state, why), numbers in seeds.items():
        run = (
            f"{method}, seed{'s' * (len(numbers) > 1)} {', '.join(numbers)}" if numbers else method
        )
        text = f"  {paint(f'{state:7}', COLOURS[state], sys.stdout)}  {rule:22}  {run:34}  {why}"
        yield text.rstrip()
