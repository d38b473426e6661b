"""The one training loop: both CLIP towers under an objective.

Letters: N training images, B batch, C classes, D embedding width.
"""

import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from latteclip import checkpoints, devices, images, monitor, objectives, parallel, tables
from latteclip import clip as clips
from latteclip import training_data as data
from latteclip.errors import UserError
from latteclip.files import replacing
from latteclip.progress import Progress
from latteclip.texts import TextBank
from latteclip.training import Optimiser, Training

log = logging.getLogger(__name__)
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device


@dataclass(frozen=True)
class Compute:
    """How a training is computed; what it computes stays the same up to rounding."""

    compile: bool = False
    gradient_checkpointing: bool = False
    micro_batch: int | None = None  # images and texts that are encoded at once
    cache_gib: float = 0.0  # decoded images are kept where all of them fit into this
    checkpoint_every: int = 1  # epochs


@dataclass(frozen=True)
class FinetuneSettings:
    """What decides a tuned model, beside its inputs and its seed."""

    model: str
    pretrained: str | None
    template: str
    objective: str
    optimiser: dict[str, Any]
    precision: str = "bf16"
    pseudo_labels: str = "zero_shot"  # caption or fused: see caption_labels
    switches: dict[str, Any] = field(default_factory=dict)  # of LatteCLIP
    compute: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> str:
        """Which labels are trained on."""
        return data.GROUND_TRUTH if self.objective == "flyp_supervised" else self.pseudo_labels


def finetune(
    files: data.TrainingFiles,
    settings: FinetuneSettings,
    model_output: str,
    history_output: str,
    checkpoint_folder: str,
    *,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Tune CLIP on the images that are not in the test split.

    Only the objective `flyp_supervised` reads labels. Writes the tuned model (see `clip.save`) and
    a row of tables.HISTORY a step. A run that was broken off goes on from its last checkpoint and
    gives what an unbroken one gives; the checkpoints are removed at the end.

    Raises:
        UserError: an input does not fit, a checkpoint is of other settings, or the loss is not
            finite.
    """
    parallel.start(device)
    threads = max(1, threads // parallel.size())
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    optimiser, compute = Optimiser(**settings.optimiser), Compute(**settings.compute)
    clip = clips.load(
        settings.model, settings.pretrained, devices.pick(device, threads), settings.precision
    )
    if parallel.size() > 1:
        why = "would see the images of their process alone"
        clips.refuse_batch_norm(clip, "processes.finetune", "1", why)
    clips.prepare_training(
        clip,
        compile=compute.compile,
        gradient_checkpointing=compute.gradient_checkpointing,
        micro_batch=compute.micro_batch,
    )
    bank = TextBank(clip)
    inputs = data.read(files, settings.template, settings.labels, bank)
    training = Training(
        clip,
        _objective(settings, bank, inputs.texts, seed),
        optimiser.start(clip.model),
        torch.zeros(len(inputs.classnames), dtype=torch.long),
    )
    decisive = {key: value for key, value in asdict(settings).items() if key != "compute"}
    identity = {**decisive, "seed": seed, "digest of images, labels and captions": inputs.digest}
    saved = checkpoints.latest(checkpoint_folder)
    if saved:
        checkpoints.refuse_others(identity, saved, checkpoint_folder)
        training.restore(saved)
        log.info("Going on after epoch %d, from %s.", saved.epochs, checkpoint_folder)

    def end_epoch(epochs: int) -> None:
        if parallel.rank() == 0 and epochs % compute.checkpoint_every == 0:
            checkpoints.save(checkpoint_folder, training.checkpoint(epochs, identity))

    start = saved.epochs if saved else 0
    _train(training, inputs, optimiser, compute, start, end_epoch, seed=seed, threads=threads)
    clip.model.eval()
    classifier = training.objective.classifier()  # every process takes part in encoding it
    if parallel.rank() == 0:
        metadata = {"settings": asdict(settings), "seed": seed, "marks": _marks(settings, training)}
        with replacing(model_output) as folder:
            clips.save(clip, classifier, inputs.classnames, settings.template, folder)
        columns = {
            name: [row.get(name) for row in training.history] for name in tables.HISTORY.names
        }
        tables.write(history_output, columns, tables.HISTORY, metadata)
        shutil.rmtree(checkpoint_folder, ignore_errors=True)
    parallel.finish()


def _objective(
    settings: FinetuneSettings, bank: TextBank, texts: objectives.TrainingTexts, seed: int
) -> objectives.Objective:
    if settings.objective in ("flyp", "flyp_supervised"):
        return objectives.Flyp(bank, texts)
    if settings.objective == "latteclip":
        switches = objectives.LatteClipSettings(**settings.switches)
        return objectives.LatteClip(bank, texts, switches, seed)
    raise UserError(
        f"Objective {settings.objective!r} is none of flyp, flyp_supervised, latteclip."
    )


def _train(
    training: Training,
    inputs: data.TrainingData,
    optimiser: Optimiser,
    compute: Compute,
    start: int,
    end_epoch: Callable[[int], None],
    *,
    seed: int,
    threads: int,
) -> None:
    """All epochs from `start`; `end_epoch` is told how many are done."""
    n = len(inputs.paths)
    if min(n, optimiser.batch_size) < parallel.size():
        raise UserError(
            f"A batch of {min(n, optimiser.batch_size)} images cannot be shared out among "
            f"{parallel.size()} processes; lower processes.finetune."
        )
    per_epoch = data.steps_per_epoch(n, optimiser.batch_size)

    def steps() -> Iterator[tuple[int, list[tuple[int, int]]]]:
        return data.schedule(n, optimiser.batch_size, optimiser.epochs, seed, start)

    limit = compute.cache_gib * 2**30 / parallel.size()  # each process keeps pictures of its own
    decoded = images.decoded_images(inputs.sizes, limit)
    loader = images.batches(
        images.ImageFiles(inputs.paths, training.clip.augment, seed, decoded),
        (parallel.share(keys) for _, keys in steps()),
        training.clip.device,
        threads,
    )
    progress = Progress(optimiser.epochs * per_epoch, "steps", done=start * per_epoch)
    for step, (epoch, keys) in enumerate(steps(), start * per_epoch):
        if step % per_epoch == 0:
            training.start_epoch()
        began = time.monotonic()
        _, batch = next(loader)
        waited = time.monotonic() - began
        index = torch.tensor([index for _, index in keys])  # [B]
        rate = optimiser.rate(step, optimiser.epochs * per_epoch)
        logs = training.step(index, inputs.labels[index], batch, rate)
        seconds = time.monotonic() - began
        timings = {"images_per_second": len(keys) / seconds, "data_wait": waited / seconds}
        training.record({"step": step, "epoch": epoch, "lr": rate, **logs, **timings})
        is_last = (step + 1) % per_epoch == 0
        if is_last or (step + 1) % CHECK_EVERY == 0:
            training.settle()
        progress.add(1, f"epoch {epoch + 1} of {optimiser.epochs}")
        if is_last:
            end_epoch(epoch + 1)


def _marks(settings: FinetuneSettings, training: Training) -> list[str]:
    """What tables must say of the run beside its numbers."""
    marks = []
    if settings.labels == data.GROUND_TRUTH:
        marks.append("supervised")
    elif settings.labels != "zero_shot":
        marks.append("ours")
    last = [row for row in training.history if row["epoch"] == training.history[-1]["epoch"]]
    agreement = sum(row["agreement"] for row in last) / len(last)
    collapsed = monitor.collapse(training.predicted, agreement)
    if collapsed:
        log.warning("The training looks collapsed: in the last epoch %s.", collapsed)
        marks.append("collapsed")
    return marks
