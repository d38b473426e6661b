"""What the rules need of Snakemake's workflow object and of the machine that it runs on.

Only this file reads attributes of that object for which there is no directive.
"""

import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.settings.enums import Quietness

from latteclip.config import checks, jobs, layers
from latteclip.config.resolve import Dataset, Run
from latteclip.core import devices
from latteclip.core.errors import UserError, refused_by_system
from latteclip.data import folder_files

GPU_JOB = "gpu_job_"  # begins the name of a default resource


class Machine:
    """What the rules need of a workflow object, and where it runs."""

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        self.is_module = not workflow.modifier.is_main_snakefile()
        self.provider = workflow.storage_settings.default_storage_provider
        # Resources by name, of the profile or the command line.
        self.default_resources = dict(
            workflow.resource_settings._parsed_default_resources
        )
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
        self.is_quiet = (
            Quietness.ALL in quiet and not workflow.output_settings.dryrun
        )

    def load(self, config: Mapping[str, Any]) -> Run:
        """Return the run of the configuration, given that of the command line or another workflow.

        WorkflowError: the first mistake in it.
        """
        with self.errors():
            # Snakemake takes the last of two equal keys of a file.
            for file in self._workflow.overwrite_configfiles:
                layers.read(file)
            # The `config` of a module wins over the shipped files as a command line does.
            files = layers.defaults(None) if self.is_module else layers.defaults()
            run = Run(files, config, self.place, self.trains)
            if not self.runs_one_job:  # the sender of the job has checked
                checks.refuse_unwritable()
                checks.refuse_unready(run)
        return run

    def set_environment(self, code: Path | None) -> None:
        """Set the environment of commands: on any node those beside this Python, with this code.

        `code` is the folder of a clone of the repository, whose package comes before any other.
        """
        programs = [os.path.dirname(sys.executable), *os.get_exec_path()]
        os.environ["PATH"] = os.pathsep.join(programs)
        if code is not None:
            places = [str(code), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        if self.runs_one_job:  # a job of a cluster, whose nodes have no internet
            os.environ["HF_HUB_OFFLINE"] = "1"

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise WorkflowError, which Snakemake prints as a sentence, for mistakes of a user."""
        try:
            yield
        except (UserError, OSError) as error:
            # Snakemake prints the sentence without the stack.
            sys.tracebacklimit = 0
            sentence = refused_by_system(error) or str(error)
            if self.is_quiet:
                print(sentence, file=sys.stderr)
            raise WorkflowError(sentence) from None

    @property
    def is_cluster(self) -> bool:
        """Whether jobs go to other machines, also in a dry run."""
        # `use_threads` is of the executor that was asked for, `non_local_exec` of the dry run.
        return (
            self._workflow.execution_settings is not None
            and self._workflow.use_threads
        )

    @property
    def runs_jobs(self) -> bool:
        """Whether jobs will run, unlike in a dry run and in `latteclip status`."""
        return (
            self._workflow.execution_settings is not None
            and not self._workflow.dryrun
        )

    @property
    def is_dry_run(self) -> bool:
        """Whether this is a dry run that came to its plan."""
        return (
            self._workflow.output_settings.dryrun
            and self._workflow.dag is not None
        )

    @property
    def pending(self) -> set[str]:
        """The outputs of the jobs that are to run."""
        return _outputs(self._workflow.dag.needrun_jobs(exclude_finished=False))

    @property
    def outputs(self) -> set[str]:
        """The outputs of all jobs, those that need not run included."""
        return _outputs(self._workflow.dag.jobs)

    @property
    def datasets(self) -> set[str]:
        """The datasets of all jobs, those that a target alone names included."""
        dag = self._workflow.dag
        all_jobs = () if dag is None else dag.jobs
        named = (job.wildcards.get("dataset") for job in all_jobs)
        return set(filter(None, named))

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
    def cores(self) -> int:
        """The cores of this machine that jobs may use."""
        here = devices.cores()
        return min(self._workflow.resource_settings.cores or here, here)

    @functools.cached_property
    def has_gpus(self) -> bool:
        """Whether jobs find GPUs, here or in the cluster.

        Only a run on this machine asks NVIDIA's driver: that of a login node may lack its card.
        """
        if self.is_cluster or self.runs_one_job:
            return True
        return self.runs_jobs and bool(devices.visible())

    @property
    def trains(self) -> bool:
        """Whether jobs will find GPUs, as known before Snakemake tells where they run.

        The profile of a cluster with GPUs has resources of their jobs, which each job is given too.
        """
        if any(name.startswith(GPU_JOB) for name in self.default_resources):
            return True
        try:
            return not self.runs_one_job and bool(devices.visible())
        except UserError:  # a run refuses such a driver
            return False

    @functools.cached_property
    def gpus(self) -> int:
        """The GPUs of this machine that jobs may use."""
        if not self.has_gpus:
            return 0
        resource = self._workflow.global_resources.get("gpu")
        # None: without --resources gpu=<number>.
        limit: int | None = resource and resource.value
        return len(devices.visible()) if limit is None else limit

    def image_folder(self, dataset: Dataset) -> str:
        """Return the folder that a rule makes, or the link to the user's folder.

        A module has no link: the handlers of the other workflow may not make it.
        """
        folder = dataset.keys.source.folder
        if folder is None:
            return jobs.downloaded_folder(dataset)[0]
        if self.is_module:
            return folder
        return jobs.FOLDER_LINK.format(dataset=dataset.name)

    @functools.cache  # noqa: B019  Snakemake asks several times, and a million files take seconds
    def folder_state(self, dataset: Dataset) -> str:
        """Return a digest of the user's own files that an index reads."""
        return folder_files.state(dataset.keys.source.folder, dataset.keys.split)


def _outputs(jobs_of_run: Iterable[Any]) -> set[str]:
    return {str(file) for job in jobs_of_run for file in job.output}
