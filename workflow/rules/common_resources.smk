# What a job asks for: threads, GPUs, memory and time.
# On a cluster memory and time grow with the dataset and with each attempt; a profile's
# `set-resources` overrides any of it. The figures are generous ones beside those of docs/scaling.md.
import shutil
from dataclasses import dataclass

from latteclip.cli import cluster
from latteclip.config.model_names import ENGINES


@dataclass(frozen=True)
class Demand:
    """Memory and time of a stage."""

    mem_mb: int  # whatever the dataset
    mb_a_million: int  # for each million images more
    minutes: int
    images_per_second: float  # low; a job that needs longer resumes


CAPTIONING = Demand(24_000, 4_000, 20, 1)
LABELLING = Demand(8_000, 8_000, 15, 100)
TABLES = Demand(4_000, 4_000, 10, 1_000)
DEMANDS = {
    "generate_textures": TABLES,
    "index_images": Demand(4_000, 4_000, 15, 100),
    "pseudo_label_images": LABELLING,
    "caption_images": CAPTIONING,
    "caption_groups": CAPTIONING,
    "gather_captions": TABLES,
    "summarize_captions": TABLES,
    "label_by_captions": Demand(16_000, 60_000, 20, 200),
    "finetune": Demand(16_000, 8_000, 20, 200),
    "evaluate": LABELLING,
    "evaluate_zero_shot": TABLES,
    "propagate_labels": Demand(16_000, 16_000, 20, 100),
    "report_dataset": TABLES,
}


def on_cluster():
    """Whether jobs go to other machines, also while a dry run only tells of them."""
    # `use_threads` follows the executor that was asked for; `non_local_exec` the dry run's own.
    return workflow.execution_settings is not None and workflow.use_threads


def threads_of(stage):
    """Threads of a stage; on this machine at most its cores."""

    def threads(wildcards):
        wanted = settings.section("threads", wildcards.dataset)[stage]
        return wanted if on_cluster() else min(wanted, os.cpu_count())

    return threads


def gpus(count=lambda wildcards: 1):
    """GPUs of a job. Without a cluster and without a GPU there is nothing to take turns on."""

    def gpu(wildcards):
        has_gpus = on_cluster() or shutil.which("nvidia-smi") is not None
        return count(wildcards) if has_gpus else 0

    return gpu


def captioner_gpus(wildcards):
    """GPUs of a captioning job: none where a server or the user writes the captions."""
    values = settings.section("captioner", wildcards.dataset)
    return values["tensor_parallel_size"] if values["engine"] in ENGINES else 0


def memory(stage):
    """MB of a stage, half as much again at each further attempt."""

    def mem_mb(wildcards, input, attempt):
        demand = DEMANDS[stage]
        millions = images_of(wildcards, input) / 1e6
        return int(
            (demand.mem_mb + demand.mb_a_million * millions) * 1.5 ** (attempt - 1)
        )

    return mem_mb


def minutes(stage, passes=lambda wildcards: 1):
    """Minutes of a stage that sees every image in each of its passes, as often as attempted."""

    def runtime(wildcards, input, attempt):
        demand = DEMANDS[stage]
        seconds = (
            images_of(wildcards, input) * passes(wildcards) / demand.images_per_second
        )
        return int((demand.minutes + seconds / 60) * attempt)

    return runtime


def images_of(wildcards, input):
    """Images of the dataset: of its index, or before there is one, what its file says of it."""
    if "images" in input.keys():
        return rows_of(str(input.images))
    counts = settings.dataset(wildcards.dataset).get("split", {}).get("counts", {})
    return counts.get("train", 0) + counts.get("test", 0)


def rows_of(path):
    """Rows of a Parquet file. One that is not there yet leaves Snakemake to ask again later."""
    from pyarrow.parquet import read_metadata

    with open(path, "rb") as file:  # by name, pyarrow's error would lack the file's
        return read_metadata(file).num_rows


def epochs(wildcards):
    return settings.method(wildcards.method, wildcards.dataset)["finetune"]["epochs"]


def share_of_shard(wildcards):
    """Of the images, the share that a captioning job asks about."""
    return 1 / int(wildcards.get("shards", 1))


def refuse_second_run():
    """Stop where jobs of another run work in this folder; Snakemake's lock sees live runs alone."""
    if not cluster.has_queue():
        return
    try:
        jobs = cluster.queue()
    except UserError as error:
        logger.warning(f"Jobs of earlier runs were not looked for: {error}")
        return
    try:
        cluster.refuse_running(jobs)
    except UserError as error:
        raise WorkflowError(str(error))
