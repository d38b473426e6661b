# What the rules share: the checked configuration, the environment of the commands, and short names
# for the functions of latteclip/config, which say what rules are given.
import atexit
import functools
import gc
import inspect
import os
import sys

from snakemake.exceptions import WorkflowError
from snakemake.io import sourcecache_entry
from snakemake.settings.enums import Quietness

# The folder of the Snakefile that people run: the code beside it comes first, whatever is installed.
ROOT = Path(os.path.realpath(workflow.current_basedir)).parents[1]
IS_CLONE = (ROOT / "latteclip").is_dir()
if IS_CLONE:
    sys.path.insert(0, str(ROOT))

IS_MODULE = not workflow.modifier.is_main_snakefile()

gc.freeze()  # what Snakemake has imported stays: a fifth of a start went into searching it

from latteclip.cli import run_messages, runs
from latteclip.config import (
    checks,
    job_resources,
    layers,
    source_dependencies,
    stage_params,
)
from latteclip.config.configuration import Configuration, as_json, note_shards
from latteclip.config.stage_params import DATA, FOLDER_FILES, MODEL_NOTE
from latteclip.core import gpus as cards
from latteclip.core.errors import UserError
from latteclip.core.terminal import paint
from latteclip.data import folder_files

# A later run finds the number of shards beside the results, where these lie in the working folder.
HAS_RESULTS = (
    not IS_MODULE and workflow.storage_settings.default_storage_provider is None
)


@functools.cache
def free_gpus():
    """GPUs of this machine that nobody computes on; at least one, on which jobs take turns."""
    try:
        return max(1, cards.free())
    except UserError as error:
        raise WorkflowError(str(error))


try:
    if not IS_MODULE:
        # Snakemake reads files of --configfile itself, and does not see a key that is there twice.
        yaml_files_given = [
            file for file in workflow.configfiles if Path(file).suffix != ".json"
        ]
        layers.given([], yaml_files_given)
        # Without `configfile:`, `config` is what the command line says.
        of_captions = free_gpus() if HAS_RESULTS and workflow.is_main_process else 1
        configuration = Configuration(layers.defaults(), config, gpus=of_captions)
    else:
        # A module of another workflow, whose folder `config` is its own. What its `config` says
        # otherwise than the shipped files counts as if it came from the command line.
        shipped_files = layers.defaults(project=None)
        configuration = Configuration(
            shipped_files, layers.difference(config, shipped_files)
        )
    if not workflow.remote_exec:  # whoever sent the job has checked
        checks.refuse_unready(configuration)
except UserError as error:
    raise WorkflowError(str(error))


# On whatever node a job runs, the commands of the environment that runs Snakemake come first, and
# they run the code that belongs to this file.
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]),
    LATTECLIP_ENVS=str(ROOT / "envs"),  # for latteclip.post-deploy.sh
)
if IS_CLONE:
    inherited = os.environ.get("PYTHONPATH")
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), inherited])))
if workflow.remote_exec:  # a job of a cluster
    # Nodes have no internet: rules that run where there is some fetched what is needed.
    os.environ.update(HF_HUB_OFFLINE="1")
    # SLURM also signals the shell. It must outlive the command, which needs time to save its work.
    shell.prefix("set -euo pipefail; trap : TERM; ")


ANY_DATASET = "[^/]+"


wildcard_constraints:
    dataset=ANY_DATASET,
    method="[^/]+",
    seed=r"\d+",
    kind="images|groups",
    shard=r"\d+",
    shards=r"\d+",


# Priorities: where cores are few, what most work waits for starts first, then what takes longest.
FIRST, EARLY = 2, 1


def one_of(names):
    """A wildcard constraint: any of the names, or none where there are none."""
    return "|".join(names) or "(?!)"


def methods_with(*objectives):
    """A wildcard constraint: the methods that have one of the objectives."""
    methods = configuration.config["methods"]
    return one_of(m for m in methods if configuration.objective(m) in objectives)


def given(function, **fixed):
    """What a function of the configuration says, for those wildcards of a job that it names."""
    names = inspect.signature(function).parameters

    def answer(wildcards):
        named = {key: value for key, value in wildcards.items() if key in names}
        return function(configuration, **{**named, **fixed})

    return answer


def given_json(function, **fixed):
    """The same as JSON."""
    answer = given(function, **fixed)
    return lambda wildcards: as_json(answer(wildcards))


# Where a storage keeps the results (docs/cluster.md), Snakemake looks there for every file of a rule
# but local ones, whose jobs it keeps beside itself, and sources of the workflow.


def unstored(files):
    """Inputs that no storage keeps: the code of the package, and what people bring."""
    if workflow.storage_settings.default_storage_provider is None:
        return files
    if isinstance(files, str):
        return sourcecache_entry(files, files)
    return [unstored(file) for file in files]


def sources(*modules):
    """The code that modules run, as inputs."""
    return unstored(source_dependencies.sources(*modules))


def given_unstored(function, **fixed):
    """What a function of the configuration names as inputs that no storage keeps."""
    answer = given(function, **fixed)
    return lambda wildcards: unstored(answer(wildcards))


@functools.cache  # Snakemake asks several times, and a million files take seconds
def state_of(dataset):
    """Options of index_images that say which files a folder of the user's holds."""
    folder = configuration.dataset(dataset)["source"].get("folder")
    if folder is None:
        return ""
    split = configuration.section("split", dataset)
    indexed = FOLDER_FILES.format(dataset=dataset)
    try:
        state = folder_files.state(folder, split["kind"], split.get("classes"), indexed)
    except UserError as error:
        raise WorkflowError(str(error))
    return f"--folder-state {state} --folder-files {indexed}"


def folder_state(wildcards):
    """The same as a function of the wildcards, by which Snakemake knows it."""
    return state_of(wildcards.dataset)


def as_found(answer):
    """JSON that names results, as a job finds them: a storage copies them for it."""
    folder = workflow.modifier.path_modifier.apply_default_storage("results")
    return lambda wildcards: answer(wildcards).replace('"results/', f'"{folder}/')


def options(*names):
    """Inputs that may be absent, as options of the command."""
    return lambda wildcards, input: " ".join(
        f"--{name.replace('_', '-')} {file}" for name in names for file in input[name]
    )


def on_cluster():
    """Whether jobs go to other machines, also while a dry run only tells of them."""
    # `use_threads` follows the executor that was asked for; `non_local_exec` the dry run's own.
    return workflow.execution_settings is not None and workflow.use_threads


def threads_of(stage):
    """Threads of a stage; on this machine at most its cores."""

    def threads(wildcards):
        wanted = configuration.section("threads", wildcards.dataset)[stage]
        return wanted if on_cluster() else min(wanted, os.cpu_count())

    return threads


# GPU jobs of this machine start when a GPU is free. A cluster, which has `nodes`, knows by itself.
if (
    not IS_MODULE
    and workflow.is_main_process
    and workflow.resource_settings.nodes is None
):
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", free_gpus())


def cores_and_gpus():
    """Cores of this machine that snakemake may use, and GPUs that its jobs may use at a time."""
    cores = min(workflow.resource_settings.cores or os.cpu_count(), os.cpu_count())
    limit = workflow.global_resources.get("gpu")
    return cores, (limit.value if limit else free_gpus()) if has_gpus() else None


def training_threads(wildcards):
    """Threads of a training; on this machine it has all cores that no other training wants."""
    if on_cluster():
        return configuration.section("threads", wildcards.dataset)["finetune"]
    return job_resources.training_threads(
        configuration, wildcards.dataset, *cores_and_gpus()
    )


def caption_threads(wildcards):
    """Threads of a captioning job; on this machine jobs beside each other share the cores."""
    if on_cluster():
        return configuration.section("threads", wildcards.dataset)["caption"]
    return job_resources.caption_threads(
        configuration, wildcards.dataset, *cores_and_gpus()
    )


@functools.cache
def has_gpus():
    """Whether this machine, or the cluster, has GPUs to take turns on."""
    return on_cluster() or bool(cards.visible()) or cards.unlisted()


def cores_per_gpu(count):
    """Cores that SLURM gives a job beside each of its GPUs, so that its tasks share its threads."""
    wanted = given(count)
    return lambda wildcards, threads: job_resources.cores_per_gpu(
        threads, wanted(wildcards)
    )


def gpus(count=job_resources.one):
    """GPUs of a job. Without a cluster and without a GPU there is nothing to take turns on."""
    wanted = given(count)

    def gpu(wildcards):
        return wanted(wildcards) if has_gpus() else 0

    return gpu


def images_of(wildcards, input):
    """Images of the dataset: those of its index, or what its file says where none can be read."""
    provider = workflow.storage_settings.default_storage_provider
    if "images" in input.keys() and provider is None:
        return job_resources.images_indexed(str(input.images))
    if "images" in input.keys() and provider == "fs":  # there is no copy here
        return job_resources.images_indexed(input.images.storage_object.query)
    return job_resources.images_expected(configuration, wildcards.dataset)


def memory(stage, beside=None):
    """MB of a stage, and of what it holds beside by its settings."""
    of_job = given(beside) if beside else lambda wildcards: 0
    return lambda wildcards, input, attempt: job_resources.memory(
        stage, images_of(wildcards, input), attempt, of_job(wildcards)
    )


def minutes(stage, passes=job_resources.one):
    """Minutes of a stage that sees every image in each of its passes."""
    of_job = given(passes)
    return lambda wildcards, input, attempt: job_resources.minutes(
        stage, images_of(wildcards, input), of_job(wildcards), attempt
    )


# What the handlers do. Those of a module run where the other workflow's handlers call them
# (docs/projects.md).


def written_by(jobs):
    """The files that jobs write."""
    return {str(file) for job in jobs for file in job.output}


def start_run():
    """Stop where this run cannot work; note it, and print what it begins with."""
    pending = written_by(workflow.dag.needrun_jobs())
    try:
        runs.refuse_second_run()  # Snakemake's lock sees live runs alone
        if not has_gpus():
            checks.refuse_slow_captions(configuration, pending)
    except UserError as error:
        raise WorkflowError(str(error))
    runs.note_run()
    start_captions(pending)
    if not IS_MODULE:  # whose options would be the other workflow's
        methods = workflow.deployment_settings.deployment_method
        sdm = [method.item_to_choice() for method in methods]
        of_datasets = {
            name: configuration.whole(name) for name in configuration.datasets
        }
        runs.note_options(of_datasets, config, sdm)
    print_lines(run_messages.started(configuration, pending))


def start_captions(pending):
    """Note how many jobs write captions, and warn where these cannot all run at once."""
    for dataset in configuration.datasets:
        of_captioner = (
            f"results/{dataset}/captions/",
            f"results/{dataset}/class_scores",
        )
        if not any(file.startswith(of_captioner) for file in pending):
            continue
        if HAS_RESULTS:
            note_shards(dataset, configuration.shards(dataset))
        _, at_a_time = cores_and_gpus()
        if at_a_time and not on_cluster():
            cores = workflow.resource_settings.cores
            said = job_resources.too_few_for_shards(
                configuration, dataset, cores, at_a_time
            )
            if said:
                logger.warning(said)


# Snakemake goes on printing after the last two handlers; what they print is to be read last.


def end_run():
    """Print where the results are."""
    lines = run_messages.finished(configuration, written_by(workflow.dag.jobs))
    atexit.register(print_lines, lines)


def report_failures():
    """Print the error messages of failed jobs, also with --quiet."""
    jobs = [
        run_messages.FailedJob(job.rule.name, dict(job.wildcards.items()), job.log)
        for failed in (
            *workflow.scheduler.failed,
            *workflow.scheduler.running,
        )  # or stopped
        for job in (failed.jobs if failed.is_group() else [failed])
    ]
    lines = [paint(x, "red", sys.stderr) for x in run_messages.failed(jobs)]
    atexit.register(print_lines, lines, is_error=True)


def print_lines(lines, is_error=False):
    """Print lines to stderr, where Snakemake prints its own; `--quiet all` keeps errors alone."""
    if is_error or Quietness.ALL not in (workflow.output_settings.quiet or ()):
        print("", *lines, sep="\n", file=sys.stderr, flush=True)
