"""The machine that runs the workflow: cores, GPUs, storage, and the user's folders of images.

Only this file reads attributes of Snakemake's workflow object for which there is no directive.
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from snakemake.settings.enums import Quietness

from latteclip.cli import messages
from latteclip.cli.rules import workflow_errors
from latteclip.config import checks, jobs, layers
from latteclip.config.resolve import Dataset, Run
from latteclip.core import gpus
from latteclip.core.terminal import SHORT
from latteclip.data import folder_files


class Machine:
    """What of a workflow object the rules need."""

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        self.config_files = workflow.overwrite_configfiles
        self.is_module = not workflow.modifier.is_main_snakefile()
        self.provider = workflow.storage_settings.default_storage_provider
        # Where files of parameters lie, whose paths Snakemake does not change: results, also in a
        # storage, and folders that no storage holds.
        modifier = workflow.modifier.path_modifier
        self.results = os.path.normpath(modifier.modify("results/."))
        self.place = modifier.replace_prefix
        # Whether this is the process of a job of a cluster.
        self.runs_one_job = bool(workflow.remote_exec)
        self.prints = workflow.is_main_process and not self.is_module
        self.is_quiet = Quietness.ALL in (workflow.output_settings.quiet or ())

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
    def planned(self) -> set[str] | None:
        """The outputs of a dry run's jobs; None: it is no dry run, or ended before its plan."""
        is_dry = self._workflow.execution_settings is not None and self._workflow.dryrun
        if not is_dry or self._workflow.dag is None:
            return None
        return _outputs(self._workflow.dag.needrun_jobs(exclude_finished=False))

    @property
    def pending(self) -> set[str]:
        """The outputs of the jobs that are to run."""
        return _outputs(self._workflow.dag.needrun_jobs())

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

    def mark_followers(self, command: str) -> None:
        """Mark as incomplete what jobs will make of the results of others in this run.

        Snakemake removes a job's outputs before it starts. When it fails or is killed, what follows
        from its earlier outputs lies there as if it was up to date. Marked, it is made again by the
        next run that wants it. Each job removes its mark at its end. Pages name the command.
        """
        dag = self._workflow.dag
        for job in dag.needrun_jobs():
            if any(map(dag.needrun, dag.dependencies[job])):
                self._workflow.persistence.started(job)
                for page in filter(os.path.isfile, job.output):
                    messages.mark_stale(Path(page), command)

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
        return self.runs_jobs and bool(gpus.visible())

    @functools.cached_property
    def free_gpus(self) -> int:
        """The number of free GPUs of this machine, but at least one, on which jobs take turns."""
        return max(1, gpus.free())

    @property
    def gpus(self) -> int | None:
        """The GPUs that jobs may use; None: there is none."""
        if not self.has_gpus:
            return None
        limit = self._workflow.global_resources.get("gpu")
        return limit.value if limit else self.free_gpus

    @property
    def default_resources(self) -> Mapping[str, Any]:
        """The default resources of the profile, by name."""
        return dict(self._workflow.resource_settings._parsed_default_resources)

    def image_folder(self, dataset: Dataset) -> str:
        """Return the folder that a rule makes, or the link to the user's folder.

        A module has no link: the handlers of the other workflow may not make it.
        """
        if made := jobs.made_folder(dataset):
            return made[0]
        if self.is_module:
            return _folder(dataset)
        return jobs.FOLDER_LINK.format(dataset=dataset.name)

    def link_folders(self, run: Run) -> None:
        """Let the links lead to the users' folders, one of which may have moved."""
        for dataset in run.datasets:
            if not jobs.made_folder(dataset):
                folder_files.link(_folder(dataset), self.image_folder(dataset))

    @functools.cache  # noqa: B019  Snakemake asks several times, and a million files take seconds
    def folder_state(self, dataset: Dataset) -> str:
        """Return a digest of the user's own files that an index reads."""
        folder = None if jobs.made_folder(dataset) else _folder(dataset)
        return folder_files.state(folder, dataset.keys.split)


def _outputs(jobs_of_run: Iterable[Any]) -> set[str]:
    return {str(file) for job in jobs_of_run for file in job.output}


def _folder(dataset: Dataset) -> str:
    source = dataset.keys.source
    return str(source.folder if source else "")


def load(workflow: Any, config: Mapping[str, Any], machine: Machine) -> Run:
    """Return the run of the configuration, with `config` of the command line or another workflow.

    WorkflowError: the first mistake in it.
    """
    with workflow_errors():
        for (
            file
        ) in machine.config_files:  # of which Snakemake takes the last of two equal keys
            layers.read(file)
        # The `config` of a module wins over the shipped files as a command line does.
        files = layers.defaults(None) if machine.is_module else layers.defaults()
        run = Run(files, config, machine.place)
        if not machine.runs_one_job:  # the sender of the job has checked
            checks.refuse_unwritable()
            checks.refuse_unready(run)
    os.environ.pop(SHORT, None)  # a job of a cluster has a terminal of its own
    if machine.prints and not workflow.output_settings.verbose:
        messages.shorten(machine)
    return run
