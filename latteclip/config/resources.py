"""Return what jobs need: memory, GPUs, and how many of them share a machine."""

import sys
from pathlib import Path
from typing import NamedTuple

from latteclip.config.keys import AUTO
from latteclip.config.labellers import Asker, askings
from latteclip.config.resolve import Dataset, Method

MAX_EPOCHS = 30  # the number of epochs that is assumed for finetune.epochs: auto
# MB of a process with its photographs and the parts of batches that it loads ahead.
PROCESS = 240


class Counts(NamedTuple):
    """Images of a dataset."""

    train: int
    test: int


def memory(least: float, processes: int, attempt: int) -> int:
    """Return the MB of a job with processes that load images, half as much again each attempt."""
    return int((least + PROCESS * processes) * 1.5 ** (attempt - 1))


def captioner_gpus(asker: Asker) -> int:
    """Return the GPUs of a captioning job, 0 if a server or the user writes the captions."""
    return asker.captioner.tensor_parallel_size if asker.engine.loads_model else 0


def trainings_at_once(dataset: Dataset, gpus: int | None) -> int:
    """Return how many trainings share this machine; without a GPU (None), one after another."""
    trainings = sum(len(each.trainings) for each in dataset.run.datasets)
    return min(gpus, max(1, trainings)) if gpus else 1


def captionings_at_once(dataset: Dataset, gpus: int | None) -> int:
    """Return how many captioning jobs share this machine."""
    jobs = dataset.shards * len(askings(dataset))
    return min(jobs, gpus // (captioner_gpus(dataset.asker) or 1)) if gpus else 1


def epochs(method: Method) -> int:
    """Return the passes of a fine-tuning over the images, at most."""
    wanted = method.keys.finetune.epochs
    return MAX_EPOCHS if wanted == AUTO else int(wanted)


def counts(dataset: Dataset) -> Counts | None:
    """Return the images of a dataset by its index or else by its file; None if unknown."""
    index = Path(dataset.folder, "images.parquet")
    if index.is_file():
        from latteclip.core import tables

        splits = tables.read(index, tables.IMAGES, ["split"])["split"].to_pylist()
        test = splits.count("test")
        return Counts(len(splits) - test, test)
    stated = dataset.keys.split.counts
    if not {"train", "test"} <= stated.keys():
        return None
    most = dataset.run.keys.limit or sys.maxsize
    train, test = (min(stated[split], most) for split in ("train", "test"))
    return Counts(train, test)
