"""What rules of the Snakefile call: the run and its machine; inputs, parameters, resources of jobs.

Only `Machine` reads attributes of Snakemake's workflow object for which there is no directive.
"""

import errno
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.io import local, sourcecache_entry
from snakemake.settings.enums import Quietness

from latteclip.config import checks, jobs, layers
from latteclip.config.resolve import Dataset, Run
from latteclip.core import devices
from latteclip.core.errors import UserError, refused_by_system
from latteclip.core.files import TABLES
from latteclip.data import folder_files

# MB of a process with its photographs and the parts of batches that it loads ahead.
PROCESS = 240
GPU_JOB = "gpu_job_"  # begins the name of a default resource
OfJob = Callable[..., Any]  # a function of a job's wildcards, as Snakemake takes it


class Machine:
    """What of a workflow object the rules need."""

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        self.config_files = workflow.overwrite_configfiles
        self.is_module = not workflow.modifier.is_main_snakefile()
        self.provider = workflow.storage_settings.default_storage_provider
        # Resources by name, of the profile or the command line.
        self.default_resources = dict(workflow.resource_settings._parsed_default_resources)
        # Where files of parameters lie, whose paths Snakemake does not change: results, also in a
        # storage, and folders that no storage holds.
        modifier = workflow.modifier.path_modifier
        self.results = os.path.normpath(modifier.modify("results/."))
        self.place = modifier.replace_prefix
        # Whether this is the process of a job of a cluster.
        self.runs_one_job = bool(workflow.remote_exec)
        self.prints = workflow.is_main_process and not self.is_module
        self.prints_little = self.prints and not workflow.output_settings.verbose
        # Snakemake prints no errors then, but for those of a dry run.
        quiet = workflow.output_settings.quiet or ()
        self.is_quiet = Quietness.ALL in quiet and not workflow.output_settings.dryrun

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise WorkflowError, which Snakemake prints as a sentence, for mistakes of a user."""
        try:
            yield
        except (UserError, OSError) as error:
            sys.tracebacklimit = 0  # Snakemake prints the sentence without the stack
            sentence = refused_by_system(error) or str(error)
            if self.is_quiet:
                print(sentence, file=sys.stderr)
            raise WorkflowError(sentence) from None

    @property
    def is_cluster(self) -> bool:
        """Whether jobs go to other machines, also in a dry run."""
        # `use_threads` is of the executor that was asked for, `non_local_exec` of the dry run.
        return self._workflow.execution_settings is not None and self._workflow.use_threads

    @property
    def runs_jobs(self) -> bool:
        """Whether jobs will run, unlike in a dry run and in `latteclip status`."""
        return self._workflow.execution_settings is not None and not self._workflow.dryrun

    @property
    def is_dry_run(self) -> bool:
        """Whether this is a dry run that came to its plan."""
        return self._workflow.output_settings.dryrun and self._workflow.dag is not None

    @property
    def pending(self) -> set[str]:
        """The outputs of the jobs that are to run."""
        return _outputs(self._workflow.dag.needrun_jobs(exclude_finished=False))

    @property
    def outputs(self) -> set[str]:
        """The outputs of all jobs, those that need not run included."""
        return _outputs(self._workflow.dag.jobs)

    @property
    def failed(self) -> list[Any]:
        """The jobs that failed or were stopped."""
        scheduler = self._workflow.scheduler
        return [
            job
            for each in (*scheduler.failed, *scheduler.running)
            for job in (each.jobs if each.is_group() else [each])
        ]

    def mark_followers(self) -> Iterator[str]:
        """Mark as incomplete, and yield, what jobs will make of the results of others in this run.

        Snakemake removes a job's outputs before it starts. When it fails or is killed, what follows
        from its earlier outputs lies there as if it was up to date. Marked, it is made again by the
        next run that wants it. Each job removes its mark at its end.
        """
        dag = self._workflow.dag
        for job in dag.needrun_jobs():
            if any(map(dag.needrun, dag.dependencies[job])):
                self._workflow.persistence.started(job)
                yield from filter(os.path.isfile, job.output)

    @property
    def logs(self) -> list[str]:
        """The files of Snakemake's log."""
        return [os.path.relpath(f) for f in self._workflow.logger_manager.get_logfile()]

    @property
    def cores(self) -> int:
        """The cores of this machine that jobs may use."""
        here = os.cpu_count() or 1
        return min(self._workflow.resource_settings.cores or here, here)

    @functools.cached_property
    def has_gpus(self) -> bool:
        """Whether jobs find GPUs, here or in the cluster.

        Only a run on this machine asks NVIDIA's driver: that of a login node may lack its card.
        """
        if self.is_cluster or self.runs_one_job:
            return True
        return self.runs_jobs and bool(devices.visible())

    @functools.cached_property
    def gpus(self) -> int | None:
        """The GPUs that jobs may use: the free ones, or one in turns; None: there is none."""
        if not self.has_gpus:
            return None
        limit = self._workflow.global_resources.get("gpu")
        return limit.value if limit else max(1, devices.free())

    def image_folder(self, dataset: Dataset) -> str:
        """Return the folder that a rule makes, or the link to the user's folder.

        A module has no link: the handlers of the other workflow may not make it.
        """
        folder = dataset.keys.source.folder
        if folder is None:
            return jobs.made_folder(dataset)[0]
        return folder if self.is_module else jobs.FOLDER_LINK.format(dataset=dataset.name)

    @functools.cache  # noqa: B019  Snakemake asks several times, and a million files take seconds
    def folder_state(self, dataset: Dataset) -> str:
        """Return a digest of the user's own files that an index reads."""
        return folder_files.state(dataset.keys.source.folder, dataset.keys.split)


def _outputs(jobs_of_run: Iterable[Any]) -> set[str]:
    return {str(file) for job in jobs_of_run for file in job.output}


def load(config: Mapping[str, Any], machine: Machine) -> Run:
    """Return the run of the configuration, with `config` of the command line or another workflow.

    WorkflowError: the first mistake in it.
    """
    with machine.errors():
        # Snakemake takes the last of two equal keys of a file.
        for file in machine.config_files:
            layers.read(file)
        # The `config` of a module wins over the shipped files as a command line does.
        files = layers.defaults(None) if machine.is_module else layers.defaults()
        run = Run(files, config, machine.place)
        if not machine.runs_one_job:  # the sender of the job has checked
            checks.refuse_unwritable()
            checks.refuse_unready(run)
    return run


def one_of(names: Iterable[str]) -> str:
    """Return a wildcard constraint: any of the names, or nothing if there are none."""
    return "|".join(names) or "(?!)"


def options(*names: str) -> OfJob:
    """Return a parameter: inputs that may be absent, as options of the command."""

    def answer(wildcards: Any, input: Any) -> str:
        words: list[str] = []
        for name in names:
            paths = [input[name]] if isinstance(input[name], str) else input[name]
            words += (f"--{name.replace('_', '-')} {path}" for path in paths)
        return " ".join(words)

    return answer


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

    def __init__(self, run: Run, machine: Machine) -> None:
        self._run = run
        self._machine = machine

    def of(self, function: Callable[..., Any], *names: str) -> OfJob:
        """Return a function of what the names stand for.

        These are the dataset, a method, a labeller, the captioner that is asked for a kind of
        TABLES, or the value of a wildcard.
        """

        def answer(wildcards: Any) -> Any:
            with self._machine.errors():
                objects = [self._object(name, wildcards) for name in names or ("dataset",)]
                return function(*objects)

        return answer

    def _object(self, name: str, wildcards: Any) -> Any:
        if name not in ("dataset", "method", "labeller", *TABLES):
            return wildcards[name]
        dataset = self._run.dataset(wildcards.dataset)
        if name == "dataset":
            return dataset
        if name == "method":
            return dataset.method(wildcards.method)
        if "labeller" not in wildcards.keys():
            return dataset.captioner(name)
        labeller = dataset.labeller(wildcards.labeller)
        return labeller if name == "labeller" else labeller.captioner

    def as_json(self, function: Callable[..., Any], *names: str) -> OfJob:
        """Return as JSON what `of` returns, with paths of results as a job finds them."""
        answer = self.of(function, *names)

        def text(wildcards: Any) -> str:
            value = json.dumps(
                answer(wildcards), default=dict, sort_keys=True, ensure_ascii=False
            )
            return value.replace('"results/', f'"{self._machine.results}/')

        return text

    def settings(self, *names: str) -> OfJob:
        """Return keys of the dataset, most of them sections, as JSON."""
        return self.as_json(lambda dataset: jobs.sections(dataset, *names))

    def each(self, key: str, function: Callable[..., Any], *names: str) -> OfJob:
        """Return the values of one key of each of several mappings, as inputs, as in `of`."""
        answer = self.of(function, *names)
        return lambda wildcards: [one[key] for one in answer(wildcards)]

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

    def threads(self, *, on_gpus: bool = False) -> OfJob:
        """Return the threads of a job: those on the GPUs of this machine share its cores."""

        def answer(wildcards: Any) -> int:
            wanted = self._run.dataset(wildcards.dataset).keys.compute.threads
            if self._machine.is_cluster:
                return wanted
            at_once = self._machine.gpus if on_gpus else None
            return max(1, min(wanted, self._machine.cores // (at_once or 1)))

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
        """Return MB that grow with the images, threads that load some, and half each attempt."""

        def answer(wildcards: Any, input: Any, attempt: int, threads: int) -> int:
            images = self._images(wildcards, input)
            loading = PROCESS * threads if loads_images else 0
            return int(
                (least + per_million * images / 1e6 + loading) * 1.5 ** (attempt - 1)
            )

        return answer

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
            raise FileNotFoundError(errno.ENOENT, "There is none yet", str(input.images))
        return int(read_metadata(index).num_rows)
