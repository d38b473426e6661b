"""The parts of a rehearsal with CLIP: how fast images come, and how fast they are trained on."""

import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latteclip.cli.rehearsal import made
from latteclip.cli.rehearsal.job import Job, hold, threads_of, trained_method
from latteclip.clip import model as clips
from latteclip.config import demands, estimate, rule_settings
from latteclip.config.configuration import Configuration, as_json
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.settings import from_json
from latteclip.train import pictures
from latteclip.train.augment import Augmentation
from latteclip.train.finetune import TrainingOutputs, finetune
from latteclip.train.settings import FinetuneSettings

GIB = 2**30
DISTINCT = 64  # image files
LOADER_BATCH, LOADER_SECONDS = 32, 10.0  # images at a time, and how long they are counted
STEPS, EPOCHS = 2, 2  # of a training; the last epoch counts


def loader(job: Job, folder: Path) -> dict[str, Any]:
    """Training images per second, decoded anew, cropped and moved to the device."""
    configuration = job.configuration()
    held = hold("clip", configuration, job, folder)
    named = configuration.section("clip", job.dataset)
    threads = threads_of("finetune", configuration, job)
    device = devices.pick(job.device, threads)
    clip = clips.load(named["model"], named["pretrained"], device, named["precision"])
    paths = made.pictures(configuration, job.dataset, folder / "pictures", DISTINCT)
    transform = Augmentation.of(clip)
    nothing = pictures.KeptPictures(np.zeros(len(paths), np.int64), 0, None)
    files = pictures.TrainingPictures(paths, transform.kept_side, 0, nothing)
    keys = (
        [(epoch, (epoch + number) % len(paths)) for number in range(LOADER_BATCH)]
        for epoch in itertools.count()
    )
    batches = pictures.batches(files, keys, transform, device, threads)
    next(batches)  # workers have started
    began, n = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < LOADER_SECONDS:
        n += len(next(batches)[1])
    text = (
        f"{n / seconds:.0f} training images per second, decoded anew, with {threads} CPU "
        f"thread{'s' * (threads > 1)}"
    )
    return {"text": text, "rate": n / seconds, "held": held}


def training(job: Job, folder: Path) -> dict[str, Any]:
    """Samples per second of fine-tuning at the configured batch, and the size of its model.

    Of several processes that share out a batch one is rehearsed, with its share.
    """
    configuration = job.configuration()
    held = hold("clip", configuration, job, folder)
    counted = estimate.counts(configuration, job.dataset)
    values = _settings(configuration, job, counted)
    batch = values["finetune"]["batch_size"]
    paths = made.pictures(configuration, job.dataset, folder / "pictures", DISTINCT)
    classes = counted.classes if counted else None
    outputs = TrainingOutputs(*(str(folder / name) for name in ("model", "history", "checkpoint")))
    finetune(
        made.training_files(paths, STEPS * batch, classes, folder),
        from_json(FinetuneSettings, as_json(values)),
        outputs,
        seed=0,
        device=job.device,
        threads=threads_of("finetune", configuration, job),
    )
    measured = _measured(outputs, batch)
    text = (
        f"{values['objective']}: {measured['rate']:.0f} samples per second in batches of {batch}"
        f"{_memory()}"
    )
    return {**measured, "text": text, "held": held}


def _settings(
    configuration: Configuration, job: Job, counted: estimate.Counts | None
) -> dict[str, Any]:
    """Those of the stage, of the method that is rehearsed; labels and texts are made ones."""
    method = trained_method(configuration)
    if method is None:
        raise UserError("No method of the configuration trains; set method to one that does.")
    values = rule_settings.finetune(configuration, job.dataset, method, "0")
    share = values["finetune"]["batch_size"] // demands.processes(configuration, job.dataset)
    batch = max(2, min(share, counted.train) if counted else share)
    return {
        **values,
        "finetune": {**values["finetune"], "epochs": EPOCHS, "batch_size": batch},
        "pseudo_labels": "zero_shot",
        "prototypes": "text",
        "head": "tuned",
        "fold": {},
    }


def _measured(outputs: TrainingOutputs, batch: int) -> dict[str, Any]:
    """What a training leaves: its rate in the last epoch, the time of all steps, sizes in bytes."""
    history = tables.read(outputs.history, tables.HISTORY)[0].to_pylist()
    last = [row for row in history if row["epoch"] == EPOCHS - 1]
    return {
        "rate": len(last) / math.fsum(1 / row["images_per_second"] for row in last),
        "steps": math.fsum(batch / row["images_per_second"] for row in history),
        "written": sum(path.stat().st_size for path in Path(outputs.model).iterdir()),
    }


def _memory() -> str:
    """The most that was allocated of a GPU's memory, in words."""
    if not torch.cuda.is_initialized():
        return ""
    return f", {torch.cuda.max_memory_allocated() / GIB:.1f} GiB of the GPU's memory"
