"""Show which stages of each dataset are done, stale or missing, by Snakemake itself.

Snakemake is asked twice, by two processes at once: `--summary` lists every output of the workflow
with what is planned for it, and a dry run gives the reasons. What the stages took comes from
Snakemake's benchmark files. Where there is a cluster, its queue follows. Nothing is run or written.
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from latteclip.cli import runs
from latteclip.cli.stages import STAGES
from latteclip.config import layers
from latteclip.core.errors import UserError
from latteclip.core.terminal import for_terminal, paint
from latteclip.report.runs import JobCost, job_costs, tokens_of, total

RESULTS = Path("results")
# The places where Snakemake looks for a workflow.
OWN_SNAKEFILES = (Path("Snakefile"), Path("workflow/Snakefile"))
MODELS = Path("resources/models")  # notes on models, which datasets share
HEAD = ["output_file", "date", "rule", "log-file(s)", "status", "plan"]  # of --summary
SHARED = "all datasets"
COLOURS = {"done": "green", "stale": "yellow", "missing": "red"}
FOLLOWING = ("Missing output files", "Input files updated by another job")
MAX_REASON = 70  # characters of a reason
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")  # what repr makes of a string


@dataclass
class Job:
    """One job of the workflow."""

    rule: str
    dataset: str
    run: str  # "method, seed n" where it has them
    outputs: list[str] = field(default_factory=list)
    exists: bool = True
    pending: bool = False
    why: str = ""

    @property
    def state(self) -> str:
        """Return done, stale (there, but outdated) or missing."""
        if not self.exists:
            return "missing"
        return "stale" if self.pending else "done"


def status(
    datasets: Sequence[str],
    config: Sequence[str],
    configfiles: Sequence[str],
    deployment: Sequence[str],
    stream: TextIO,
) -> str:
    """Return the state of every stage as text.

    Args:
        datasets: keys or their folders below results; none for those with results, or else what the
            configuration names.
        config: KEY=VALUE pairs for Snakemake; with neither these nor files of configuration, a
            dataset is looked at with the options of its last run.
        configfiles: configuration files for Snakemake.
        deployment: methods for its --sdm; another one than the run's makes every stage stale.
        stream: where it will be printed.

    Raises:
        UserError: Snakemake refuses the configuration.
    """
    names = [Path(dataset).name for dataset in datasets]
    if not names and not configfiles and not any(pair.startswith("dataset=") for pair in config):
        known = dict.fromkeys([*layers.datasets(), *runs.noted_datasets()])
        names = [key for key in known if (RESULTS / key).is_dir()]
    jobs: dict[tuple[str, ...], Job] = {}  # by their outputs: datasets share some
    with tempfile.TemporaryDirectory() as folder:
        for options in _options(names, config, configfiles, deployment, Path(folder)):
            with ThreadPoolExecutor() as pool:
                summary, planned = pool.map(
                    lambda what, options=options: _snakemake(what, *options),
                    ("--summary", "--dry-run"),
                )
            reasons = read_reasons(planned)
            for job in read_summary(summary):
                job.why = _why(job, reasons)
                jobs.setdefault(tuple(job.outputs), job)
    order = {rule: number for number, rule in enumerate(STAGES)}

    def place(job: Job) -> tuple[int, str]:
        return order.get(job.rule.removesuffix("_shard"), len(order)), job.run

    blocks = [*_lock(stream), table(sorted(jobs.values(), key=place), stream), *_queue(stream)]
    return "\n\n".join(blocks)


def _options(
    names: Sequence[str],
    config: Sequence[str],
    configfiles: Sequence[str],
    deployment: Sequence[str],
    folder: Path,
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
    for number, (key, datasets) in enumerate(noted.items()):
        values, methods = json.loads(key)
        file = folder / f"{number}.json"
        file.write_text(json.dumps({**values, "dataset": datasets}), encoding="utf-8")
        asked.append(([str(file)], [], methods))
    for files, words, methods in asked:
        flags = {"--configfile": files, "--config": words, "--sdm": methods}
        yield [word for flag, each in flags.items() if each for word in (flag, *each)]


def _lock(stream: TextIO) -> Iterator[str]:
    """Yield the sentence on Snakemake's lock of this folder, if there is one."""
    unlock = "snakemake --unlock" if _has_own_workflow() else "latteclip workflow --unlock"
    if sentence := runs.describe_lock(unlock):
        yield f"{paint('lock', 'bold', stream)}: {sentence}"


def _queue(stream: TextIO) -> Iterator[str]:
    """Yield the jobs of this folder in the queue of a cluster, if there are any."""
    title = paint("SLURM queue", "bold", stream)
    try:
        jobs = runs.queue()
    except UserError as error:
        yield f"{title}: {error}"
        return
    if jobs:
        lines = [f"  job {job.id:9}  {job.name:40}  {job}" for job in jobs]
        yield "\n".join([f"{title}: {len(jobs)} jobs", *lines])


def _snakemake(*arguments: str) -> str:
    """Return the output of Snakemake for the workflow of this folder, or for the package's own.

    Raises:
        UserError: it failed; with its message.
    """
    package = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    workflow = [] if _has_own_workflow() else package
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "--nocolor", *workflow, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if run.returncode:
        raise UserError(f"Snakemake failed: {_complaint(run.stdout)}")
    return run.stdout


def _has_own_workflow() -> bool:
    """Return whether snakemake finds a workflow in this folder by itself."""
    return any(file.is_file() for file in OWN_SNAKEFILES)


def _complaint(text: str) -> str:
    """Return the message of an error of Snakemake, without its place in the workflow."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    heads = [i for i, line in enumerate(lines) if re.match(r"\w*(Error|Exception)\b.*:$", line)]
    message = lines[heads[-1] + 1 :] if heads else lines[-3:]
    return " ".join(line for line in message if not line.startswith('File "'))


def read_summary(text: str) -> list[Job]:
    """Return the jobs that `snakemake --summary` lists.

    Raises:
        UserError: it has other columns than expected.
    """
    rows = [line.split("\t") for line in text.splitlines() if line.count("\t") >= len(HEAD) - 1]
    if not rows or rows[0] != HEAD:
        raise UserError(
            "Snakemake's --summary has other columns than expected; install the version of "
            "Snakemake that pyproject.toml names."
        )
    jobs: dict[tuple[str, ...], Job] = {}
    for file, _, rule, _, state, plan in rows[1:]:
        key = (rule, *_job_identity(file))
        job = jobs.setdefault(key, Job(*key))
        job.outputs.append(file)
        job.exists &= state != "missing"
        job.pending |= plan == "update pending"
    return list(jobs.values())


def _job_identity(file: str) -> tuple[str, str]:
    """Return the dataset of an output, and its method and seed."""
    path, parts = Path(file), Path(file).parts
    if len(parts) < 3 or (path.parent == MODELS and path.suffix == ".json"):
        return SHARED, ""
    seed = re.fullmatch(r"seed(\d+)", parts[3]) if len(parts) > 3 else None
    return parts[1], f"{parts[2]}, seed {seed[1]}" if seed else ""


def read_reasons(text: str) -> dict[str, str]:
    """Return the reason for each output that `snakemake --dry-run` prints."""
    found: dict[str, str] = {}
    outputs: list[str] = []
    for line in text.splitlines():
        key, _, value = line.strip().partition(": ")
        if re.match(r"(local)?(rule|checkpoint) \w+:$", line):
            outputs = []
        elif key == "output":
            outputs = value.split(", ")
        elif key == "reason":
            found |= dict.fromkeys(outputs, value)
    return found


def _why(job: Job, reasons: dict[str, str]) -> str:
    """Return a short reason, without missing outputs and inputs that other jobs will update."""
    if not job.pending:
        return "" if job.exists else "not needed"
    reason = next((reasons[file] for file in job.outputs if file in reasons), "")
    if reason.startswith("Params have changed"):
        text = f"settings changed{changed_settings(reason)}"
    else:
        parts = filter(None, (part.strip() for part in reason.split(";")))
        late = "an earlier stage will run" if job.exists else "not run yet"
        text = next((part for part in parts if not part.startswith(FOLLOWING)), late)
    text = for_terminal(text.replace(" since last execution", ""))
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def changed_settings(reason: str) -> str:
    """Return `: key old -> new` for each changed key of Snakemake's lists of parameters.

    Of a parameter that is not a JSON object, such as a prompt, only the new value is given.
    """
    before, _, now = reason.partition(" now: ")
    old, new = _settings(before), _settings(now)
    changed = {key: value for key, value in new.items() if key not in old or old[key] != value}
    parts = [
        f"now {json.dumps(key, ensure_ascii=False)}"
        if value is None
        else f"{key} {old.get(key, 'unset')} -> {value}"
        for key, value in changed.items()
    ]
    return f": {', '.join(parts)}" if parts else ""


def _settings(text: str) -> dict[str, str | None]:
    """Return the values of the JSON objects among parameters by dotted key; None for other text."""
    found: dict[str, str | None] = {}
    for quoted in QUOTED.findall(text):
        content = ast.literal_eval(quoted)
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


def table(jobs: Sequence[Job], stream: TextIO) -> str:
    """Return one block per dataset, with one line for the jobs of a rule, method and state."""
    lines: list[str] = []
    names = [name for name in dict.fromkeys(job.dataset for job in jobs) if name != SHARED]
    for name in [*sorted(names), SHARED]:
        own = [job for job in jobs if job.dataset == name]
        if own:
            done = sum(job.state == "done" for job in own)
            title = paint(for_terminal(name), "bold", stream)
            lines += [f"{title}: {done} of {len(own)} jobs done", *_rows(own, stream)]
            lines += [*_costs(name, stream), ""]
    return "\n".join(lines).rstrip()


def _costs(dataset: str, stream: TextIO) -> Iterator[str]:
    """Yield the time and memory of the last jobs of a dataset, in all and by stage."""
    folder = RESULTS / dataset
    jobs = job_costs(folder)
    if not jobs:
        return
    answers = list(tokens_of(folder))
    read, written = sum(part[1] for part in answers), sum(part[2] for part in answers)
    tokens = f", {read:,} tokens read, {written:,} written" if read or written else ""
    yield f"  {paint('took', 'bold', stream)}: {_cost(jobs)}{tokens}"
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


def _rows(jobs: Sequence[Job], stream: TextIO) -> Iterator[str]:
    together: dict[tuple[str, str, str, str], list[str]] = {}
    for job in jobs:
        method, _, seed = job.run.partition(", seed ")
        together.setdefault((job.rule, method, job.state, job.why), []).append(seed)
    for (rule, method, state, why), seeds in together.items():
        what = f"{method}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if method else ""
        text = f"  {paint(f'{state:7}', COLOURS[state], stream)}  {rule:22}  {what:34}  {why}"
        yield text.rstrip()
