"""What rules of the Snakefile call: inputs, parameters and resources of jobs."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from snakemake.exceptions import WorkflowError
from snakemake.io import local, sourcecache_entry

from latteclip.config import resources
from latteclip.config.resolve import Run, sections
from latteclip.core.errors import UserError, refused_by_system

if TYPE_CHECKING:
    from latteclip.cli.machine import Machine

GPU_JOB = "gpu_job_"  # begins the name of a default resource
OfJob = Callable[..., Any]  # a function of a job's wildcards, as Snakemake takes it


@contextmanager
def workflow_errors() -> Iterator[None]:
    """Raise WorkflowError, which Snakemake prints as a sentence, for mistakes of a user."""
    try:
        yield
    except (UserError, OSError) as error:
        sys.tracebacklimit = 0  # Snakemake prints the sentence without the stack
        raise WorkflowError(refused_by_system(error) or str(error)) from None


def one_of(names: Iterable[str]) -> str:
    """Return a wildcard constraint: any of the names, or nothing if there are none."""
    return "|".join(names) or "(?!)"


def options(*names: str) -> OfJob:
    """Return a parameter: inputs that may be absent, as options of the command."""
    return lambda wildcards, input: _options(input, names)


def output_options(*names: str) -> OfJob:
    """Return a parameter: outputs as options of the command."""
    return lambda wildcards, output: _options(output, names)


def _options(files: Any, names: Iterable[str]) -> str:
    words: list[str] = []
    for name in names:
        paths = [files[name]] if isinstance(files[name], str) else files[name]
        words += (f"--{name.replace('_', '-')} {path}" for path in paths)
    return " ".join(words)


def part(wildcards: Any) -> str:
    """Return a parameter: the option with the shard or the labeller of a job of captions."""
    if "shard" in wildcards.keys():
        return f"--shard {wildcards.shard}/{wildcards.shards}"
    return f"--labeller {wildcards.labeller}" if "labeller" in wildcards.keys() else ""


def file_names(*names: str) -> OfJob:
    """Return a parameter: inputs, of which some may be absent, as a JSON object of paths."""
    return lambda wildcards, input: json.dumps(
        {name: str(input[name]) for name in names if input[name]}
    )


class Rules:
    """Functions of the wildcards of jobs, by a run and a machine."""

    def __init__(self, run: Run, machine: "Machine") -> None:
        self._run = run
        self._machine = machine

    def of(self, function: Callable[..., Any], *names: str, **fixed: Any) -> OfJob:
        """Return a function of what the names stand for: the dataset, a method, or a wildcard."""

        def answer(wildcards: Any) -> Any:
            with workflow_errors():
                objects = [self._object(name, wildcards) for name in names or ("dataset",)]
                return function(*objects, **fixed)

        return answer

    def _object(self, name: str, wildcards: Any) -> Any:
        if name not in ("dataset", "method", "asker", "labeller"):
            return wildcards[name]
        dataset = self._run.dataset(wildcards.dataset)
        if name == "dataset":
            return dataset
        if name == "method":
            return dataset.method(wildcards.method)
        labeller = wildcards.get("labeller", "")
        return dataset.asker_of(labeller) if name == "asker" else dataset.labeller(labeller)

    def as_json(self, function: Callable[..., Any], *names: str, **fixed: Any) -> OfJob:
        """Return as JSON what `of` returns, with paths of results as a job finds them."""
        answer = self.of(function, *names, **fixed)

        def text(wildcards: Any) -> str:
            value = json.dumps(
                answer(wildcards), default=dict, sort_keys=True, ensure_ascii=False
            )
            return value.replace('"results/', f'"{self._machine.results}/')

        return text

    def settings(self, *names: str) -> OfJob:
        """Return sections of the dataset, or single keys such as clip.precision, as JSON."""
        return self.as_json(lambda dataset: sections(dataset.keys, *names))

    def when(self, path: str, condition: Callable[..., Any], *names: str) -> OfJob:
        """Return an input, a path with wildcards, that a condition decides as in `of`."""
        wanted = self.of(condition, *names)
        return lambda wildcards: (
            [path.format(**dict(wildcards.items()))] if wanted(wildcards) else []
        )

    def each(self, key: str, function: Callable[..., Any], *names: str) -> OfJob:
        """Return the values of one key of each of several mappings, as inputs, as in `of`."""
        answer = self.of(function, *names)
        return lambda wildcards: [run[key] for run in answer(wildcards) if run.get(key)]

    def users(self, files: Any) -> Any:
        """Return inputs, or their function, that are files of the user, which no storage holds.

        Where a storage holds the results, Snakemake looks there for all inputs but sources of the
        workflow. A job with a `local` input would run on the login node.
        """
        if self._machine.provider is None:
            return local(files)
        if callable(files):
            return lambda wildcards: self.users(files(wildcards))
        if isinstance(files, str):
            return sourcecache_entry(files, files)
        return [self.users(file) for file in files]

    # Resources.

    def threads(self, jobs_at_once: OfJob | None = None) -> OfJob:
        """Return the threads of a job: jobs that run at once on this machine share its cores."""

        def answer(wildcards: Any) -> int:
            dataset = self._run.dataset(wildcards.dataset)
            wanted = dataset.keys.compute.threads
            if self._machine.is_cluster:
                return wanted
            at_once = 1
            if jobs_at_once is not None:
                at_once = jobs_at_once(dataset, self._machine.gpus)
            return max(1, min(wanted, self._machine.cores // max(1, at_once)))

        return answer

    def on_gpus(self, count: OfJob = lambda wildcards: 1) -> dict[str, OfJob]:
        """Return resources of a job that may have GPUs: their number, and the cores beside each.

        Default resources of the profile that begin with gpu_job_ are for jobs with a GPU alone.
        """
        defaults = self._machine.default_resources

        def number(wildcards: Any) -> int:
            return count(wildcards) if self._machine.has_gpus else 0

        def of_gpu_job(name: str) -> OfJob:
            special, usual = defaults[name], defaults.get(name.removeprefix(GPU_JOB))

            # Snakemake gives a function what it names: here all that an expression may need.
            def answer(
                wildcards: Any, input: Any, attempt: int, threads: int, async_run: Any
            ) -> Any:
                resource = special if number(wildcards) else usual
                given = {"attempt": attempt, "threads": threads, "rulename": ""}
                given |= {"input": input, "async_run": async_run}
                return resource and resource.evaluate(wildcards, **given).value

            return answer

        def cores(wildcards: Any, threads: int) -> int:
            return math.ceil(threads / max(1, number(wildcards)))

        gpu_job = {
            name.removeprefix(GPU_JOB): of_gpu_job(name)
            for name in defaults
            if name.startswith(GPU_JOB)
        }
        # SLURM gives so many cores to each task of a job, and starts one task for each GPU.
        return {
            "gpu": number,
            "cpus_per_gpu": cores,
            "nodes": lambda wildcards: 1,
            **gpu_job,
        }

    def memory(self, least: int, per_million: int, loads_images: bool = False) -> OfJob:
        """Return MB that grow with the images, with threads that load some, and with attempts."""
        return lambda wildcards, input, attempt, threads: resources.memory(
            least + per_million * self._images(wildcards, input) / 1e6,
            threads if loads_images else 0,
            attempt,
        )

    def minutes(
        self, least: int, images_per_second: float, passes: OfJob = lambda wildcards: 1
    ) -> OfJob:
        """Return minutes that grow with the images, the passes over them, and attempts.

        A job of a shard sees its share of the images.
        """

        def answer(wildcards: Any, input: Any, attempt: int) -> int:
            seen = self._images(wildcards, input) * passes(wildcards)
            seen /= int(wildcards.get("shards", 1))
            return int((least + seen / images_per_second / 60) * attempt)

        return answer

    def _images(self, wildcards: Any, input: Any) -> int:
        """Return the images of the index, or of the dataset's file if there is no index here."""
        if "images" not in input.keys() or self._machine.provider not in (None, "fs"):
            stated = self._run.dataset(wildcards.dataset).keys.split.counts
            return stated.get("train", 0) + stated.get("test", 0)
        from pyarrow.parquet import read_metadata

        stored = self._machine.provider is not None
        index = input.images.storage_object.query if stored else str(input.images)
        if not os.path.isfile(index):  # Snakemake asks again later
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), index)
        return int(read_metadata(index).num_rows)
