"""The one training loop: both CLIP towers under an objective.

Letters: N training images, B batch, C classes, D embedding width.
"""

import logging
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from latteclip.clip import model as clips
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.progress import Progress
from latteclip.core.signals import Signals, Terminated, ending_in_order
from latteclip.data import loader
from latteclip.train import checkpoints, data, monitor, parallel
from latteclip.train.objectives import base
from latteclip.train.step import Optimiser, Training
from latteclip.train.texts import TextBank

log = logging.getLogger(__name__)
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device


@dataclass(frozen=True)
class Compute:
    """How a training is computed; what it computes stays the same up to rounding."""

    compile: bool = False
    gradient_checkpointing: bool = False
    micro_batch: int | None = None  # images and texts that are encoded at once
    cache_gib: float = 0.0  # decoded images are kept where all of them fit into this
    checkpoint_every: int = 1  # epochs; the last one leaves a checkpoint in any case


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
    gives what an unbroken one gives; the checkpoints are removed at the end. SIGTERM and Ctrl-C let
    the running step end, leave a checkpoint of it, and end the process.

    Raises:
        UserError: an input does not fit, a checkpoint is of other settings, or the loss is not
            finite.
    """
    parallel.start(device)
    threads = max(1, threads // parallel.size())
    optimiser, compute = Optimiser(**settings.optimiser), Compute(**settings.compute)
    with ending_in_order("Nothing was trained yet: a rerun starts where this run did.") as signals:
        training, inputs = _load(
            files, settings, optimiser, compute, signals, seed=seed, device=device, threads=threads
        )
        kept = _Kept(checkpoint_folder, _identity(settings, seed, inputs))
        start = kept.resume(training)
        with signals.held():  # neither a step nor the writing may break off in the middle
            _train(training, inputs, optimiser, compute, kept, start, seed=seed, threads=threads)
            training.clip.model.eval()
            classifier = training.objective.classifier()  # every process takes part in encoding it
            if parallel.rank() == 0:
                _write(training, classifier, inputs, settings, seed, model_output, history_output)
                if signals.number:  # who ends a job may remove what it wrote
                    kept.end(signals.number, len(training.history))
                shutil.rmtree(checkpoint_folder, ignore_errors=True)
    parallel.finish()


@dataclass(frozen=True)
class _Kept:
    """The checkpoints of a training."""

    folder: str
    identity: dict[str, Any]

    def resume(self, training: Training) -> int:
        """Go on from the newest one; the number of steps done.

        Raises:
            UserError: it is of another training.
        """
        saved = checkpoints.latest(self.folder)
        if saved is None:
            return 0
        checkpoints.refuse_others(self.identity, saved, self.folder)
        training.restore(saved)
        log.info("Going on after step %d, from %s.", saved.steps, self.folder)
        return saved.steps

    def save(self, training: Training, steps: int) -> None:
        """Add one after so many steps, by process 0."""
        if parallel.rank() == 0:
            checkpoints.save(self.folder, training.checkpoint(steps, self.identity))

    def end(self, number: int, steps: int) -> NoReturn:
        """End the process, as a signal asks, after the newest one."""
        raise Terminated(number, f"Step {steps} is kept in {self.folder}: rerun to go on.")


def _load(
    files: data.TrainingFiles,
    settings: FinetuneSettings,
    optimiser: Optimiser,
    compute: Compute,
    signals: Signals,
    *,
    seed: int,
    device: str,
    threads: int,
) -> tuple[Training, data.TrainingData]:
    """The start of a training, and what it is on."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
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
        signals,
    )
    return training, inputs


def _identity(settings: FinetuneSettings, seed: int, inputs: data.TrainingData) -> dict[str, Any]:
    """What decides the result of a training."""
    decisive = {key: value for key, value in asdict(settings).items() if key != "compute"}
    return {**decisive, "seed": seed, "digest of images, labels and captions": inputs.digest}


def _objective(
    settings: FinetuneSettings, bank: TextBank, texts: base.TrainingTexts, seed: int
) -> base.Objective:
    if settings.objective in ("flyp", "flyp_supervised"):
        return base.Flyp(bank, texts)
    if settings.objective == "latteclip":
        switches = base.LatteClipSettings(**settings.switches)
        return base.LatteClip(bank, texts, switches, seed)
    raise UserError(
        f"Objective {settings.objective!r} is none of flyp, flyp_supervised, latteclip."
    )


def _train(
    training: Training,
    inputs: data.TrainingData,
    optimiser: Optimiser,
    compute: Compute,
    kept: _Kept,
    start: int,
    *,
    seed: int,
    threads: int,
) -> None:
    """All steps from `start`.

    Raises:
        Terminated: a signal came; the step that was running is done and kept.
    """
    n = len(inputs.paths)
    if min(n, optimiser.batch_size) < parallel.size():
        raise UserError(
            f"A batch of {min(n, optimiser.batch_size)} images cannot be shared out among "
            f"{parallel.size()} processes; lower processes.finetune."
        )
    per_epoch = data.steps_per_epoch(n, optimiser.batch_size)
    total = optimiser.epochs * per_epoch

    def steps() -> Iterator[tuple[int, list[tuple[int, int]]]]:
        return data.schedule(n, optimiser.batch_size, optimiser.epochs, seed, start)

    limit = compute.cache_gib * 2**30 / parallel.size()  # each process keeps pictures of its own
    decoded = loader.decoded_images(inputs.sizes, limit)
    batches = loader.batches(
        loader.ImageFiles(inputs.paths, training.clip.augment, seed, decoded),
        (parallel.share(keys) for _, keys in steps()),
        training.clip.device,
        threads,
    )
    progress = Progress(total, "steps", done=start)
    for step, (epoch, keys) in enumerate(steps(), start):
        if step % per_epoch == 0:
            training.start_epoch()
        began = time.monotonic()
        _, batch = next(batches)
        waited = time.monotonic() - began
        index = torch.tensor([index for _, index in keys])  # [B]
        rate = optimiser.rate(step, total)
        logs = training.step(index, inputs.labels[index], batch, rate)
        seconds = time.monotonic() - began
        timings = {"images_per_second": len(keys) / seconds, "data_wait": waited / seconds}
        training.record({"step": step, "epoch": epoch, "lr": rate, **logs, **timings})
        done = step + 1
        ends_epoch = done % per_epoch == 0
        if ends_epoch or training.ending or done % CHECK_EVERY == 0:
            training.settle()
        progress.add(1, f"epoch {epoch + 1} of {optimiser.epochs}")
        is_due = ends_epoch and (epoch + 1) % compute.checkpoint_every == 0
        if is_due or training.ending or done == total:
            kept.save(training, done)
        if training.ending:
            parallel.wait()  # for the checkpoint: torchrun kills the others when one is gone
            kept.end(training.ending, done)


def _write(
    training: Training,
    classifier: torch.Tensor,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    seed: int,
    model_output: str,
    history_output: str,
) -> None:
    metadata = {"settings": asdict(settings), "seed": seed, "marks": _marks(settings, training)}
    with replacing(model_output) as folder:
        clips.save(training.clip, classifier, inputs.classnames, settings.template, folder)
    columns = {name: [row.get(name) for row in training.history] for name in tables.HISTORY.names}
    tables.write(history_output, columns, tables.HISTORY, metadata)


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
