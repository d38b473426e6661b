"""Functions of jobs, for the rules: settings, options for optional inputs, and resources."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

from snakemake.io import local, sourcecache_entry

from latteclip.cli.machine import GPU_JOB, Machine
from latteclip.config.labellers import Captioner, DatasetLabeller
from latteclip.config.resolve import Dataset, Method, Run

# MB of a process with its photographs and the parts of batches that it loads ahead.
PROCESS = 240
# A function of a job's wildcards, as Snakemake takes it.
OfJob = Callable[..., Any]
# A path of attributes, such as "keys.clip.precision", or a function of the object.
Wanted = str | Callable[[Any], Any]


def one_of(names: Iterable[str]) -> str:
    """Return a wildcard constraint: any of the names, or nothing if there are none."""
    return "|".join(names) or "(?!)"


def optional_inputs(*names: str) -> OfJob:
    """Return a parameter: inputs that may be absent, as options of the command."""

    def options(wildcards: Any, input: Any) -> str:
        words: list[str] = []
        for name in names:
            paths = [input[name]] if isinstance(input[name], str) else input[name]
            words += (f"--{name.replace('_', '-')} {path}" for path in paths)
        return " ".join(words)

    return options


def shard_or_labeller(wildcards: Any) -> str:
    """Return a parameter: the option with the shard or the labeller of a job of captions."""
    if "shard" in wildcards.keys():
        return f"--shard {wildcards.shard}/{wildcards.shards}"
    if "labeller" in wildcards.keys():
        return f"--labeller {wildcards.labeller}"
    return ""


def inputs_as_json(*names: str) -> OfJob:
    """Return a parameter: inputs, of which some may be absent, as a JSON object of paths."""
    return lambda wildcards, input: json.dumps(
        {name: str(input[name]) for name in names if input[name]}
    )


def _either(number: OfJob, of_gpu_jobs: Any, usual: Any) -> OfJob:
    """Return one of two resources by the number of a job's GPUs."""

    # Snakemake gives a function what it names: here all that an expression may need.
    def answer(
        wildcards: Any, input: Any, attempt: int, threads: int, async_run: Any
    ) -> Any:
        resource = of_gpu_jobs if number(wildcards) else usual
        if resource is None:
            return None
        return resource.evaluate(
            wildcards,
            attempt=attempt,
            threads=threads,
            rulename="",
            input=input,
            async_run=async_run,
        ).value

    return answer


class JobFunctions:
    """Functions of the wildcards of jobs, by a run and a machine."""

    def __init__(self, run: Run, machine: Machine) -> None:
        self._run = run
        self._machine = machine

    # Settings. `wanted` is a path of attributes, or a function of the object.

    def dataset_setting(self, wanted: Wanted) -> OfJob:
        """Return a function of wildcards: what is wanted of the job's dataset."""
        return self._setting(self._dataset, wanted)

    def method_setting(self, wanted: Wanted) -> OfJob:
        """Return a function of wildcards: what is wanted of the job's method."""

        def method(wildcards: Any) -> Method:
            return self._dataset(wildcards).method(wildcards.method)

        return self._setting(method, wanted)

    def labeller_setting(self, wanted: Wanted) -> OfJob:
        """Return a function of wildcards: what is wanted of the job's labeller."""
        return self._setting(self._labeller, wanted)

    def captioner_setting(self, table: str, wanted: Wanted) -> OfJob:
        """Return a function of wildcards: what is wanted of the captioner that the job asks.

        That is the captioner of its labeller, or else the dataset's captioner for one of TABLES.
        """

        def captioner(wildcards: Any) -> Captioner | None:
            if "labeller" in wildcards.keys():
                return self._labeller(wildcards).captioner
            return self._dataset(wildcards).captioner(table)

        return self._setting(captioner, wanted)

    def _setting(self, find: OfJob, wanted: Wanted) -> OfJob:
        read = attrgetter(wanted) if isinstance(wanted, str) else wanted

        def setting(wildcards: Any) -> Any:
            with self._machine.errors():
                return read(find(wildcards))

        return setting

    def _dataset(self, wildcards: Any) -> Dataset:
        return self._run.dataset(wildcards.dataset)

    def _labeller(self, wildcards: Any) -> DatasetLabeller:
        return self._dataset(wildcards).labeller(wildcards.labeller)

    def as_json(self, setting: OfJob) -> OfJob:
        """Return a setting as JSON, with paths of results as a job finds them."""
        return lambda wildcards: json.dumps(
            setting(wildcards), default=self._value, sort_keys=True
        )

    def _value(self, value: Any) -> Any:
        if isinstance(value, Path):
            return str(Path(self._machine.results, value.relative_to("results")))
        return dict(value)

    def user_files(self, files: Any) -> Any:
        """Return inputs, or their function, that are files of the user, which no storage holds.

        Where a storage holds the results, Snakemake looks there for all inputs but sources of the
        workflow. A job with a `local` input would run on the login node.
        """
        if self._machine.provider is None:
            return local(files)
        if callable(files):
            return lambda wildcards: self.user_files(files(wildcards))
        if isinstance(files, str):
            return sourcecache_entry(files, files)
        return [self.user_files(file) for file in files]

    # Resources.

    def threads(self, *, on_gpus: bool = False) -> OfJob:
        """Return the threads of a job: those on the GPUs of this machine share its cores."""

        def answer(wildcards: Any) -> int:
            wanted = self._run.dataset(wildcards.dataset).keys.compute.threads
            if self._machine.is_cluster:
                return wanted
            at_once = self._machine.gpus if on_gpus else 1
            return max(1, min(wanted, self._machine.cores // max(1, at_once)))

        return answer

    def gpus(self, count: OfJob = lambda wildcards: 1) -> dict[str, Any]:
        """Return resources of a job that may have GPUs: their number, and the cores beside each.

        Default resources of the profile that begin with gpu_job_ are for jobs with a GPU alone.
        """

        def number(wildcards: Any) -> int:
            return count(wildcards) if self._machine.has_gpus else 0

        def cores(wildcards: Any, threads: int) -> int:
            return math.ceil(threads / max(1, number(wildcards)))

        # SLURM gives so many cores to each task of a job, and starts one task for each GPU.
        resources: dict[str, Any] = {
            "gpu": number,
            "cpus_per_gpu": cores,
            "nodes": 1,
        }
        defaults = self._machine.default_resources
        for name in defaults:
            if name.startswith(GPU_JOB):
                usual = name.removeprefix(GPU_JOB)
                resources[usual] = _either(
                    number, defaults[name], defaults.get(usual)
                )
        return resources

    def memory(
        self, least: int, per_million: int, loads_images: bool = False
    ) -> OfJob:
        """Return MB that grow with the images, threads that load some, and half each attempt."""

        def answer(wildcards: Any, input: Any, attempt: int, threads: int) -> int:
            images = self._images(wildcards, input)
            loading = PROCESS * threads if loads_images else 0
            return int(
                (least + per_million * images / 1e6 + loading)
                * 1.5 ** (attempt - 1)
            )

        return answer

    def minutes(
        self,
        least: int,
        images_per_second: float,
        passes: OfJob = lambda wildcards: 1,
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
        if "images" not in input.keys() or self._machine.provider not in (
            None,
            "fs",
        ):
            stated = self._run.dataset(wildcards.dataset).keys.split.counts
            return stated.get("train", 0) + stated.get("test", 0)
        from pyarrow.parquet import read_metadata

        stored = self._machine.provider is not None
        index = input.images.storage_object.query if stored else str(input.images)
        if not os.path.isfile(index):  # Snakemake asks again later
            raise FileNotFoundError(
                errno.ENOENT, "There is none yet", str(input.images)
            )
        return int(read_metadata(index).num_rows)
