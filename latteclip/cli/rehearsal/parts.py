"""The parts of a rehearsal, each a process of its own: what it measures is a file of JSON.

python -m latteclip.cli.rehearsal.parts PART FOLDER JOB

A part runs what a run would, on a few pictures, in FOLDER; JOB is a `Job` in JSON. It downloads
nothing.
"""

import itertools
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latteclip.cli import log as logs
from latteclip.config import demands, estimate, layers, model_names, rule_settings
from latteclip.config.configuration import Configuration, as_json
from latteclip.config.rule_inputs import MODEL_NOTE
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.settings import from_json, from_values

if TYPE_CHECKING:
    from latteclip.captions.engines.base import Captioner
    from latteclip.captions.request import Request

log = logging.getLogger(__name__)
BEGAN = time.monotonic()
RESULT, ERROR = "result.json", "error"
DISTINCT = 64  # image files
LOADER_BATCH, LOADER_SECONDS = 32, 10.0  # images at a time, and how long they are counted
STEPS, EPOCHS = 2, 2  # of a training; the last epoch counts
PAIR, MANY, ROUND_SECONDS = 2, 64, 30.0  # captions of the two rounds; time for the second
GROUP_PICTURES = 4


@dataclass(frozen=True)
class Job:
    """What is rehearsed."""

    dataset: str  # whose models and settings
    device: str  # cuda or cpu
    given: dict[str, Any] = field(default_factory=dict)  # over the configuration's files
    is_shipped: bool = False  # the files of the package alone count, not those of the folder
    options: str = ""  # of the command line, as a shell reads them

    def configuration(self) -> Configuration:
        """The one that the job is of."""
        project = None if self.is_shipped else layers.PROJECT
        return Configuration(layers.defaults(project), self.given)


def trained_method(configuration: Configuration) -> str | None:
    """The method whose training is rehearsed: LatteCLIP's objective, the dearest, comes first."""
    trained = [name for name in configuration.methods if configuration.is_trained(name)]
    return max(trained, key=lambda name: configuration.objective(name) == "latteclip", default=None)


def loader(job: Job, folder: Path) -> dict[str, Any]:
    """Training images per second, decoded anew, cropped and moved to the device."""
    from latteclip.cli.rehearsal import made
    from latteclip.clip import model as clips
    from latteclip.core import devices
    from latteclip.data import loader as loading

    configuration = job.configuration()
    held = _hold("clip", configuration, job, folder)
    named = configuration.section("clip", job.dataset)
    threads = _threads("finetune", configuration, job)
    device = devices.pick(job.device, threads)
    clip = clips.load(named["model"], named["pretrained"], device, named["precision"])
    paths = made.pictures(configuration, job.dataset, folder / "pictures", DISTINCT)
    files = loading.ImageFiles(paths, clip.augment, seed=0)
    keys = (
        [(epoch, (epoch + number) % len(paths)) for number in range(LOADER_BATCH)]
        for epoch in itertools.count()
    )
    batches = loading.batches(files, keys, device, threads)
    next(batches)  # workers have started
    began, n = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < LOADER_SECONDS:
        n += len(next(batches)[1])
    return {"rate": n / seconds, "threads": threads, "held": held}


def training(job: Job, folder: Path) -> dict[str, Any]:
    """Samples per second of fine-tuning at the configured batch, and the size of its model.

    Of several processes that share out a batch one is rehearsed, with its share.
    """
    import torch

    from latteclip.cli.rehearsal import made
    from latteclip.core import tables
    from latteclip.train.finetune import TrainingOutputs, finetune
    from latteclip.train.settings import FinetuneSettings

    configuration = job.configuration()
    held = _hold("clip", configuration, job, folder)
    values = _training_settings(configuration, job)
    batch = values["finetune"]["batch_size"]
    counted = estimate.counts(configuration, job.dataset)
    paths = made.pictures(configuration, job.dataset, folder / "pictures", DISTINCT)
    classes = counted.classes if counted else None
    outputs = TrainingOutputs(*(str(folder / name) for name in ("model", "history", "checkpoint")))
    try:
        finetune(
            made.training_files(paths, STEPS * batch, classes, folder),
            from_json(FinetuneSettings, as_json(values)),
            outputs,
            seed=0,
            device=job.device,
            threads=_threads("finetune", configuration, job),
        )
    except torch.OutOfMemoryError:
        raise UserError(
            f"The GPU's memory does not hold the training on {batch} images at once; set "
            f"compute.micro_batch to {max(1, batch // 4)} or less: the loss still compares the "
            "whole batch"
        ) from None
    history = tables.read(outputs.history, tables.HISTORY)[0].to_pylist()
    seconds = [batch / row["images_per_second"] for row in history]
    counting = [s for s, row in zip(seconds, history, strict=True) if row["epoch"] == EPOCHS - 1]
    return {
        "rate": batch * len(counting) / math.fsum(counting),
        "batch": batch,
        "start": time.monotonic() - BEGAN - math.fsum(seconds),
        "written": sum(path.stat().st_size for path in Path(outputs.model).iterdir()),
        "gpu": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0,
        "held": held,
    }


def _training_settings(configuration: Configuration, job: Job) -> dict[str, Any]:
    """Those of the stage, of the method that is rehearsed; labels and texts are made ones."""
    method = trained_method(configuration)
    if method is None:
        raise UserError("no method of the configuration trains; set method")
    values = rule_settings.finetune(configuration, job.dataset, method)
    whole = values["finetune"]["batch_size"]
    batch = max(2, whole // demands.processes(configuration, job.dataset))
    return {
        **values,
        "finetune": {**values["finetune"], "epochs": EPOCHS, "batch_size": batch},
        "compute": {**values["compute"], "checkpoint_every": EPOCHS},
        "pseudo_labels": "zero_shot",
        "prototypes": "text",
        "head": "tuned",
        "held_out": 0.0,
    }


def captioner(job: Job, folder: Path) -> dict[str, Any]:
    """How long the engine takes to start, and the captions per second that it then writes."""
    from latteclip.captions.engines import start as engines
    from latteclip.captions.engines.base import CaptionerSettings

    configuration = job.configuration()
    settings = from_values(
        CaptionerSettings, rule_settings.captioner(configuration, job.dataset), "captioner"
    )
    engines.check(settings)
    held = _hold("captioner", configuration, job, folder)
    requests = _requests(configuration, settings, job, folder)
    began = time.monotonic()
    engine = engines.start(
        settings, _threads("caption", configuration, job), _pictures_of_group(configuration, job)
    )
    start = time.monotonic() - began
    seconds, caption = _ask(engine, requests[:PAIR], settings.model)
    n = PAIR
    room = min(len(requests), settings.batch_size, int(PAIR * ROUND_SECONDS / seconds))
    if room > n:
        n = room
        seconds, _ = _ask(engine, requests[:n], settings.model)
    return {
        "engine": engine.version,
        "start": start,
        "rate": n / seconds,
        "at_once": n,
        "caption": caption,
        "held": held,
    }


def _requests(
    configuration: Configuration, settings: Any, job: Job, folder: Path
) -> "list[Request]":
    """Questions about images, as the stage asks them."""
    import numpy as np

    from latteclip.captions.engines import start as engines
    from latteclip.captions.prepare import Preparer, Task
    from latteclip.captions.request import Layout, Request
    from latteclip.cli.rehearsal import made
    from latteclip.core.prompts import fill

    prompt = fill(rule_settings.prompt(configuration, job.dataset, "image"), "object")
    identity = settings.identity(Layout(max_side=settings.max_image_side))
    as_urls = not engines.loads_model(settings.engine)
    prepare = Preparer(identity, as_urls, held=np.zeros(0, np.uint64))
    paths = made.pictures(configuration, job.dataset, folder / "pictures", MANY)
    prepared = [prepare(Task(key, [path], prompt)) for key, path in enumerate(paths)]
    return [Request(one.task.key, one.pictures or (), prompt) for one in prepared]


def _pictures_of_group(configuration: Configuration, job: Job) -> int:
    """The most pictures that one request of the stages shows."""
    several = configuration.section("groups", job.dataset)["layout"] == "multi_image"
    grouped = "group" in configuration.caption_kinds(job.dataset)
    return GROUP_PICTURES if several and grouped else 1


def _ask(engine: "Captioner", requests: "Sequence[Request]", model: str) -> tuple[float, str]:
    """Seconds until all are answered, and the last answer."""
    began, text = time.monotonic(), ""
    for _, answer in engine.answer(requests):
        if answer.error is not None:
            raise UserError(f"{model} does not answer: {answer.error.rstrip('.')}")
        text = answer.text
    return time.monotonic() - began, " ".join(text.split())


def _threads(stage: str, configuration: Configuration, job: Job) -> int:
    """CPU threads of a stage."""
    wanted = int(configuration.section("threads", job.dataset)[stage])
    return min(wanted, len(os.sched_getaffinity(0)))


def _hold(section: str, configuration: Configuration, job: Job, folder: Path) -> int | None:
    """See that the cache has the model of a section; its bytes there, None for one of a folder.

    Raises:
        UserError: it has not; says which command fetches it.
    """
    from latteclip.data import download_models

    names = configuration.hub_model(section, job.dataset)
    if names is None:
        return None
    note = folder / "note.json"
    try:  # as the stage that fetches it, which finds all of it in the cache
        if section == "clip":
            settings = from_values(download_models.HubClip, names)
            download_models.download_clip(settings, str(note))
        else:
            wanted = from_values(download_models.HubCaptioner, names)
            download_models.download_captioner(wanted, str(note))
    except UserError as error:
        log.info("%s", error)
        fetch = f"latteclip workflow -j1 {MODEL_NOTE.format(model=model_names.slug(names))}"
        raise UserError(
            f"the cache lacks {names['model']}, or a part of it, and a rehearsal downloads "
            f"nothing; fetch it with: {fetch} {job.options}".rstrip()
        ) from None
    repos = json.loads(note.read_bytes())["repos"]
    return sum(size for repo in repos for size in repo["files"].values())


PARTS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "loader": loader,
    "training": training,
    "captioner": captioner,
}


def main(arguments: Iterable[str]) -> int:
    """Run a part and write what it measured, or the sentence that says why it could not."""
    name, folder, text = arguments
    logs.start(None, debug=False)
    job = from_json(Job, text)
    _claim(name, job)
    # All that the part and its libraries write for themselves is to go with the folder.
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        result = PARTS[name](job, Path(folder))
    except UserError as error:
        result = {ERROR: str(error)}
    write_json(Path(folder, RESULT), result)
    return 1 if ERROR in result else 0


def _claim(name: str, job: Job) -> None:
    """Take GPUs as a stage does: their locks are in the folder that all jobs share."""
    from latteclip.core import gpus

    n = demands.captioner_gpus(job.configuration(), job.dataset) if name == "captioner" else 1
    if n and job.device == "cuda":
        gpus.claim(n)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
