"""Functions that rules and handlers of the Snakefile call: they join configuration and machine."""

import atexit
import contextlib
import errno
import functools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.io import sourcecache_entry
from snakemake.settings.enums import Quietness

from latteclip.cli import estimate, run_messages, run_terminal, runs
from latteclip.config import checks, job_resources, layers, stage_code, stage_params
from latteclip.config.configuration import SHARDS, Configuration
from latteclip.config.methods import ObjectiveRecord
from latteclip.config.sections.split import SplitSection
from latteclip.core import gpus, run_options
from latteclip.core.errors import UserError
from latteclip.core.file_names import edited_classes, note_edit
from latteclip.core.files import write_json
from latteclip.core.terminal import SHORT, paint
from latteclip.data import folder_files

OfJob = Callable[[Any], Any]  # a function of a job's wildcards, as Snakemake takes it
# Wildcards that not all rules have which share a function: it has a default for them.
OPTIONAL = ("voter", "number")
SHARING = {  # threads of stages of which several jobs share the cores of this machine
    "finetune": job_resources.training_threads,
    "caption": job_resources.caption_threads,
}


def one_of(names: Iterable[str]) -> str:
    """Return a wildcard constraint: any of the names, or nothing if there are none."""
    return "|".join(names) or "(?!)"


def options(*names: str) -> Callable[[Any, Any], str]:
    """Return a parameter: inputs that may be absent, as options of the command."""
    return lambda wildcards, input: " ".join(
        f"--{name.replace('_', '-')} {file}" for name in names for file in input[name]
    )


def option_each(name: str, *option_names: str) -> Callable[[Any, Any], str]:
    """Return a parameter: the files of one input, each with its option, or nothing."""
    return lambda wildcards, input: " ".join(
        f"--{option.replace('_', '-')} {file}"
        for option, file in zip(option_names, input[name], strict=False)
    )


def file_names(*names: str) -> Callable[[Any, Any], str]:
    """Return a parameter: inputs, of which some may be absent, as a JSON object of paths."""
    return lambda wildcards, input: json.dumps(
        {name: str(input[name]) for name in names if input[name]}
    )


@contextlib.contextmanager
def workflow_errors() -> Iterator[None]:
    """Raise WorkflowError, which Snakemake prints as a sentence, for UserError."""
    try:
        yield
    except UserError as error:
        sys.tracebacklimit = 0  # Snakemake prints the sentence without the stack
        raise WorkflowError(str(error)) from None


@functools.cache
def free_gpus() -> int:
    """Return the number of free GPUs, but at least one, on which jobs take turns."""
    with workflow_errors():
        return max(1, gpus.free())


class RuleFunctions:
    """Inputs, parameters and resources of jobs, by the configuration and the machine."""

    def __init__(self, workflow: Any, config: Mapping[str, Any]) -> None:
        """Load the configuration, with `config` of the command line or of another workflow."""
        self._workflow = workflow
        self._config = config
        self._is_module = not workflow.modifier.is_main_snakefile()
        self._provider = workflow.storage_settings.default_storage_provider
        self._results = workflow.modifier.path_modifier.apply_default_storage("results")
        # Later runs read the number of shards beside the results, if these are in a folder here.
        self._notes_shards = not self._is_module and self._provider is None
        # A cluster has `nodes`. Its login node may have drivers without a GPU, and is not asked.
        on_this_machine = (
            workflow.is_main_process and workflow.resource_settings.nodes is None
        )
        with workflow_errors():
            self.configuration = self._load(on_this_machine)
        os.environ.pop(SHORT, None)  # a job of a cluster has a terminal of its own
        is_main = workflow.is_main_process and not self._is_module
        if is_main:
            runs.drop_backups(Path(".snakemake"))
            atexit.register(self._print_plan)
        if is_main and not workflow.output_settings.verbose:
            run_terminal.shorten(lambda: workflow.dryrun)
        # GPU jobs of this machine wait for a GPU, as those of a cluster do by themselves.
        if (
            on_this_machine
            and not self._is_module
            and "gpu" not in workflow.global_resources
        ):
            workflow.register_resource("gpu", free_gpus())

    def _load(self, on_this_machine: bool) -> Configuration:
        if self._is_module:
            # Its `config` wins over the shipped files as a command line does.
            shipped = layers.defaults(project=None)
            loaded = Configuration(shipped, layers.difference(self._config, shipped))
        else:
            # Snakemake reads files of --configfile too, but accepts a key given twice.
            layers.given([], self._workflow.configfiles)
            gpus_here = free_gpus() if self._notes_shards and on_this_machine else 1
            loaded = Configuration(layers.defaults(), self._config, gpus=gpus_here)
        if not self._workflow.remote_exec:  # the sender of the job has checked
            checks.refuse_unwritable()
            checks.refuse_unready(loaded)
        return loaded

    def given(self, function: Callable[..., Any], *names: str, **fixed: Any) -> OfJob:
        """Return `function` of the configuration, of the named wildcards and of fixed values."""

        def answer(wildcards: Any) -> Any:
            absent = set(OPTIONAL).difference(wildcards.keys())
            values = {name: wildcards[name] for name in names if name not in absent}
            with workflow_errors():
                return function(self.configuration, **values, **fixed)

        return answer

    def given_if(
        self, path: str, condition: Callable[..., Any], *names: str, **fixed: Any
    ) -> Any:
        """Return an input, a path with wildcards, that a condition decides as in `given`."""
        wanted = self.given(condition, *names, **fixed)
        return lambda wildcards: (
            [path.format(**dict(wildcards.items()))] if wanted(wildcards) else []
        )

    def given_each(self, key: str, function: Callable[..., Any], *names: str) -> OfJob:
        """Return the values of one key of each of several runs, as inputs, as in `given`."""
        answer = self.given(function, *names)
        return lambda wildcards: [run[key] for run in answer(wildcards) if run.get(key)]

    def given_json(self, function: Callable[..., Any], *names: str, **fixed: Any) -> OfJob:
        """Return as JSON what `given` returns."""
        answer = self.given(function, *names, **fixed)
        return lambda wildcards: json.dumps(
            answer(wildcards), sort_keys=True, ensure_ascii=False
        )

    def unstored(self, files: Any) -> Any:
        """Return inputs, or their function, that no storage holds: code and files of the user.

        Where a storage holds the results, Snakemake looks there for all inputs but sources of the
        workflow. Local files would bind a job to this machine.
        """
        if self._provider is None:
            return files
        if callable(files):
            return lambda wildcards: self.unstored(files(wildcards))
        if isinstance(files, str):
            return sourcecache_entry(files, files)
        return [self.unstored(file) for file in files]

    def sources(self, *modules: str) -> Any:
        """Return the source files of modules and of their imports, as inputs."""
        return self.unstored(stage_code.sources(*modules))

    def as_found(self, answer: OfJob) -> OfJob:
        """Return JSON with paths of results as a job finds them: a storage copies them for it."""
        return lambda wildcards: answer(wildcards).replace(
            '"results/', f'"{self._results}/'
        )

    def methods_with(self, has: Callable[[ObjectiveRecord], object]) -> str:
        """Return a wildcard constraint: the methods with an objective that has something."""
        methods = self.configuration.config["methods"]
        return one_of(m for m in methods if has(self.configuration.objective(m)))

    def image_folder(self, dataset: str) -> str:
        """Return the folder that a rule makes, or a link to the user's own folder.

        Only a run makes the link, or leads it to a folder that moved.
        """
        if made := stage_params.made_folder(self.configuration, dataset):
            return made[0]
        folder = str(self.configuration.dataset(dataset)["source"]["folder"])
        place = stage_params.FOLDER_LINK.format(dataset=dataset)
        runs_jobs = (
            self._workflow.execution_settings is not None and not self._workflow.dryrun
        )
        return folder_files.link(folder, place) if runs_jobs else place

    @functools.cache  # noqa: B019  Snakemake asks several times, and a million files take seconds
    def folder_state(self, dataset: str) -> str:
        """Return a digest of the files in the user's own folder, "" for one that a rule makes."""
        if stage_params.made_folder(self.configuration, dataset):
            return ""
        folder = self.configuration.dataset(dataset)["source"]["folder"]
        with workflow_errors():
            return folder_files.state(folder, self.configuration.section("split", dataset))

    def on_cluster(self) -> bool:
        """Return whether jobs go to other machines, also in a dry run."""
        # `use_threads` is of the executor that was asked for, `non_local_exec` of the dry run.
        return self._workflow.execution_settings is not None and self._workflow.use_threads

    def has_gpus(self) -> bool:
        """Return whether this machine or the cluster has GPUs."""
        return self.on_cluster() or _sees_gpus()

    def _cores_and_gpus(self) -> tuple[int, int | None]:
        """Return the cores and GPUs of this machine that jobs may use; None without a GPU."""
        cores = min(self._workflow.resource_settings.cores or _cores(), _cores())
        limit = self._workflow.global_resources.get("gpu")
        return cores, (limit.value if limit else free_gpus()) if self.has_gpus() else None

    def threads_of(self, stage: str) -> OfJob:
        """Return the threads of a stage: jobs that run at once on this machine share its cores."""

        def threads(wildcards: Any) -> int:
            wanted = int(self.configuration.section("threads", wildcards.dataset)[stage])
            if self.on_cluster():
                return wanted
            if shared := SHARING.get(stage):
                return shared(
                    self.configuration, wildcards.dataset, *self._cores_and_gpus()
                )
            return min(wanted, _cores())

        return threads

    def gpus(self, count: OfJob = lambda wildcards: 1) -> OfJob:
        """Return the GPUs of a job, or 0 on a machine without one."""
        return lambda wildcards: count(wildcards) if self.has_gpus() else 0

    def cores_per_gpu(self, count: OfJob) -> Callable[[Any, int], int]:
        """Return the cores beside each GPU: SLURM gives so many to each task of a job."""
        return lambda wildcards, threads: math.ceil(threads / max(1, count(wildcards)))

    def memory(self, stage: str) -> Callable[..., int]:
        """Return the MB of a stage."""
        return lambda wildcards, input, attempt, threads: job_resources.memory(
            stage, self._images(wildcards, input), attempt, threads
        )

    def minutes(
        self, stage: str, passes: OfJob = lambda wildcards: 1
    ) -> Callable[..., int]:
        """Return the minutes of a stage that sees every image in each of its passes.

        A job of a shard sees its share of the images.
        """

        def answer(wildcards: Any, input: Any, attempt: int) -> int:
            number = passes(wildcards) / int(dict(wildcards.items()).get("shards", 1))
            return job_resources.minutes(
                stage, self._images(wildcards, input), number, attempt
            )

        return answer

    def _images(self, wildcards: Any, input: Any) -> int:
        """Return the images of the index, or of the dataset's file if there is no index here.

        FileNotFoundError: there is no index yet. Snakemake asks again later.
        """
        if "images" not in input.keys() or self._provider not in (None, "fs"):
            values = self.configuration.section("split", wildcards.dataset)
            counts = SplitSection(**values).counts
            return (counts.train or 0) + (counts.test or 0)
        from latteclip.core import tables

        # A storage has no copy here.
        index = input.images.storage_object.query if self._provider else str(input.images)
        if not os.path.isfile(index):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), index)
        with workflow_errors():
            return tables.n_rows(index)

    # Handlers. Those of a module run if the other workflow's handlers call them (docs/cluster.md).

    def start_run(self) -> None:
        """Stop a run that cannot work, note its options, and print what it will do."""
        pending = _outputs(self._workflow.dag.needrun_jobs())
        with workflow_errors():
            runs.refuse_second_run()  # Snakemake's lock sees live runs only
            if not self.has_gpus():
                checks.refuse_slow_captions(self.configuration, pending)
        runs.note_run()
        for dataset in self.configuration.datasets:
            files = (f"results/{dataset}/captions/", f"results/{dataset}/class_scores")
            if self._notes_shards and any(file.startswith(files) for file in pending):
                number = self.configuration.shards(dataset)
                write_json(SHARDS.format(dataset=dataset), {"shards": number})
        if not self._is_module:  # whose options would be those of the other workflow
            methods = self._workflow.deployment_settings.deployment_method
            whole = {
                name: self.configuration.whole(name) for name in self.configuration.datasets
            }
            run_options.note_options(
                whole, self._config, [m.item_to_choice() for m in methods]
            )
        lines = run_messages.started(self.configuration, pending)
        self._print([*lines, *self._note_edited_classes()])

    def _print_plan(self) -> None:
        """Print what captioners would be asked after a dry run."""
        is_dry = self._workflow.execution_settings is not None and self._workflow.dryrun
        if not is_dry or self._workflow.dag is None:
            return
        jobs = self._workflow.dag.needrun_jobs(exclude_finished=False)
        pending = _outputs(jobs)
        with contextlib.suppress(UserError):  # a damaged table, which a run reports
            for dataset in self.configuration.datasets:
                self._print(estimate.lines(self.configuration, dataset, pending))

    def _note_edited_classes(self) -> Iterator[str]:
        """Note edits of proposed classes in their history, and yield a line about each."""
        for dataset in filter(self.configuration.discovers, self.configuration.datasets):
            folder = f"results/{dataset}"
            names = edited_classes(folder)
            if names is not None:
                note_edit(folder, names)
                yield (
                    f"{dataset}: {folder}/classes.txt was edited by hand and is used as it is. "
                    "Delete it to return to the proposal."
                )

    def end_run(self) -> None:
        """Print where the results are, after the last lines of Snakemake, and free the disk."""
        for dataset in self.configuration.datasets:
            folder = stage_params.decoded_images(self.configuration, dataset)
            shutil.rmtree(folder, ignore_errors=True)
        lines = run_messages.finished(self.configuration, _outputs(self._workflow.dag.jobs))
        atexit.register(self._print, [*lines, *self._logs()])

    def report_failures(self) -> None:
        """Print the error messages of failed jobs last, also with --quiet."""
        scheduler = self._workflow.scheduler
        lines = [
            run_messages.failure(job.rule.name, dict(job.wildcards.items()), job.log)
            for each in (*scheduler.failed, *scheduler.running)  # failed, or stopped
            for job in (each.jobs if each.is_group() else [each])
        ]
        lines = [paint(line, "red", sys.stderr) for line in lines]
        lines = [*self._logs(), *lines]
        atexit.register(print, "", *lines, sep="\n", file=sys.stderr, flush=True)

    def _logs(self) -> list[str]:
        """Return where the run is logged."""
        files = map(os.path.relpath, self._workflow.logger_manager.get_logfile())
        return [f"All of Snakemake's messages are in {file}." for file in files]

    def _print(self, lines: Iterable[str]) -> None:
        """Print to stderr as Snakemake does, but not with `--quiet all`."""
        if Quietness.ALL not in (self._workflow.output_settings.quiet or ()):
            print("", *lines, sep="\n", file=sys.stderr, flush=True)


def _outputs(jobs: Iterable[Any]) -> set[str]:
    return {str(file) for job in jobs for file in job.output}


def _cores() -> int:
    return os.cpu_count() or 1


@functools.cache
def _sees_gpus() -> bool:
    return bool(gpus.visible())
