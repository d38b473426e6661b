"""Return what jobs need: memory, time, GPUs and threads.

On a cluster memory and time grow with the dataset and with each attempt. A profile's
`set-resources` overrides all of them. The numbers are generous compared with docs/scaling.md.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from latteclip.config.asking import Asking
from latteclip.config.configuration import Configuration
from latteclip.config.sections.base import AUTO
from latteclip.config.sections.split import CountsSection
from latteclip.core.file_names import SCORES

INDEX = "results/{dataset}/images.parquet"
MAX_EPOCHS = 30  # the number of epochs that is assumed for finetune.epochs: auto


class Counts(NamedTuple):
    """Images of a dataset."""

    train: int
    test: int
    classes: int | None = None


# MB of a stage, MB for each further million images, minutes, and images per second, which is low:
# a job that needs longer resumes. Stages that are not named read and write tables.
TABLES = (4_000, 4_000, 10, 1_000)
RESOURCES = {
    "index_images": (4_000, 4_000, 15, 100),
    "find_duplicates": (4_000, 4_000, 10, 500),
    "pseudo_label_images": (6_000, 8_000, 15, 100),
    "encode_images": (6_000, 8_000, 15, 100),
    "encode_examples": (6_000, 8_000, 15, 100),
    "propose_classes": (4_000, 16_000, 15, 200),
    "caption_images": (24_000, 4_000, 20, 1),
    "caption_groups": (24_000, 4_000, 20, 1),
    "score_classes": (24_000, 4_000, 20, 1),
    "write_votes": (6_000, 8_000, 15, 100),
    "adapt_zero_shot": (8_000, 8_000, 15, 100),
    "score_unknown": (8_000, 8_000, 15, 100),
    "fuse_labels": (16_000, 16_000, 20, 200),
    "assemble_model": (8_000, 0, 10, 1_000),
    "find_learning_rate": (16_000, 8_000, 20, 200),
    "finetune": (16_000, 8_000, 20, 200),
    "average_weights": (14_000, 4_000, 10, 100),
    "evaluate": (6_000, 8_000, 15, 100),
    "evaluate_classifier": (8_000, 8_000, 15, 100),
}
# Stages whose threads are processes that load images beside a GPU.
LOADING = {
    "pseudo_label_images",
    "encode_images",
    "encode_examples",
    "write_votes",
    "find_learning_rate",
    "finetune",
    "average_weights",
    "evaluate",
}
# MB of such a process with its photographs and the parts of batches that it loads ahead.
PROCESS = 220


def memory(stage: str, images: int, attempt: int, threads: int) -> int:
    """Return the MB of a stage, half as much again at each further attempt."""
    least, per_million, _, _ = RESOURCES.get(stage, TABLES)
    loading = PROCESS * threads if stage in LOADING else 0
    wanted = least + per_million * images / 1e6 + loading
    return int(wanted * 1.5 ** (attempt - 1))


def minutes(stage: str, images: int, passes: float, attempt: int) -> int:
    """Return the minutes of a stage with so many passes over the images, times the attempt."""
    _, _, least, images_per_second = RESOURCES.get(stage, TABLES)
    return int((least + images * passes / images_per_second / 60) * attempt)


def captioner_gpus(configuration: Configuration, dataset: str, voter: str = "") -> int:
    """Return the GPUs of a captioning job, 0 if a server or the user writes the captions."""
    values = configuration.section("captioner", dataset, voter)
    loads_model = configuration.engine(dataset, voter).loads_model
    return int(values["tensor_parallel_size"]) if loads_model else 0


def votes_gpus(configuration: Configuration, dataset: str, voter: str) -> int:
    """Return the GPUs of a job that writes the votes of a labeller."""
    record = next(v.record for v in configuration.voters(dataset) if v.name == voter)
    return int(record.loads_clip or record.asks is not None)


def training_threads(
    configuration: Configuration, dataset: str, cores: int, gpus: int | None
) -> int:
    """Return the threads of a fine-tuning on this machine.

    With GPUs, threads load images, and trainings that run at once divide the cores that snakemake
    may use. Without a GPU (None) the model computes with `threads.finetune` threads.
    """
    wanted = int(configuration.section("threads", dataset)["finetune"])
    if gpus:
        trainings = sum(
            len(configuration.trainings(each)) for each in configuration.datasets
        )
        wanted = max(wanted, cores // min(gpus, max(1, trainings)))
    return min(wanted, cores)


def caption_threads(
    configuration: Configuration, dataset: str, cores: int, gpus: int | None
) -> int:
    """Return the threads of a captioning job on this machine, whose GPUs divide the cores."""
    wanted = int(configuration.section("threads", dataset)["caption"])
    kinds = len(configuration.caption_kinds(dataset))
    kinds += configuration.scores_classes(dataset)
    voters = [v for v in configuration.own_voters(dataset) if v.record.asks is not None]
    at_once = 1
    if gpus:
        at_once = kinds * configuration.shards(dataset) + len(voters)
    if of_a_job := captioner_gpus(configuration, dataset):
        at_once = min(at_once, (gpus or 1) // of_a_job)
    return max(1, min(wanted, cores // max(1, at_once)))


def epochs(configuration: Configuration, dataset: str, method: str) -> int:
    """Return the passes of a fine-tuning over the images, at most."""
    wanted = configuration.method(method, dataset)["finetune"]["epochs"]
    return MAX_EPOCHS if wanted == AUTO else int(wanted)


def questions_per_image(
    configuration: Configuration, dataset: str, voter: str = ""
) -> float:
    """Return the mean number of questions about an image where classes are scored."""
    kind = configuration.section("scores", dataset, voter)["kind"]
    orders = 2.0 if kind == "multiple_choice" else 1.0  # of the options
    most = Asking(SCORES, voter).max_images(configuration, dataset)
    images = counts(configuration, dataset)
    if most is None or images is None:
        return orders
    return orders * min(1.0, most / max(1, images.train))


def counts(configuration: Configuration, dataset: str) -> Counts | None:
    """Return the images of a dataset by its index or else by its file; None if unknown."""
    index = Path(INDEX.format(dataset=dataset))
    if index.is_file():
        from latteclip.core import tables
        from latteclip.core.metadata import IndexMetadata

        table = tables.read(index, tables.IMAGES, ["split"])
        classnames = tables.read_metadata(index, IndexMetadata).classnames
        test = table["split"].to_pylist().count("test")
        return Counts(len(table) - test, test, len(classnames))
    stated = CountsSection(**configuration.section("split", dataset).get("counts", {}))
    if stated.train is None or stated.test is None:
        return None
    most = configuration.limit or sys.maxsize
    return Counts(min(stated.train, most), min(stated.test, most), stated.classes)
