"""The one training loop: both CLIP towers under an objective.

Letters: N training images, B batch, C classes, D embedding width.
"""

import contextlib
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import class_embeddings, encode_files
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.files import read_object, refuse_folder, replacing
from latteclip.core.hashing import digest_of
from latteclip.core.signals import Signals, Terminated, ending_in_order
from latteclip.core.steps import AUTO
from latteclip.core.terminal import Progress
from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import CalibratedFeatures, label_votes
from latteclip.train import (
    checkpoints,
    data,
    image_cache,
    model_setup,
    parallel,
)
from latteclip.train.augment import Augmentation
from latteclip.train.settings import GROUND_TRUTH, FinetuneSettings, Recipe
from latteclip.train.step import Training, collapse

log = logging.getLogger(__name__)
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device


@dataclass(frozen=True)
class TrainingOutputs:
    """What a training leaves, and where it keeps what it has until then."""

    model: str  # folder
    history: str
    checkpoints: str  # folder; gone at the end


def finetune(
    files: data.TrainingFiles,
    settings: FinetuneSettings,
    outputs: TrainingOutputs,
    *,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Tune CLIP on the images that are not in the test split.

    Only the objective `flyp_supervised` reads labels. Writes the tuned model (see
    `clip.model.save`) and one row of tables.HISTORY per step. A run that was interrupted goes on
    from its last checkpoint and gives what an uninterrupted one gives; the checkpoints are removed
    at the end. On SIGTERM and Ctrl-C the running step is finished and kept as a checkpoint before
    the process ends.

    Raises:
        UserError: an input does not fit, or the loss is not finite.
    """
    refuse_folder(outputs.model)  # before the work, and not after it
    parallel.start(device)
    log.info("The training has %s.", devices.cores_in_use(threads))
    threads = max(1, threads // parallel.size())
    with ending_in_order("Nothing was trained yet: a rerun starts where this run did.") as signals:
        training, inputs, recipe = _load(
            files, settings, signals, seed=seed, device=device, threads=threads
        )
        # What the training follows, and what its model and history name.
        found = [key for key, value in vars(settings.finetune).items() if value == AUTO]
        settings = replace(settings, finetune=recipe)
        kept = _Kept(outputs.checkpoints, _identity(settings, seed, inputs))
        done = kept.resume(training)
        with signals.held():  # neither a step nor the writing may be interrupted
            with model_setup.explaining_memory(training.clip, inputs, recipe):
                _train(training, inputs, settings, recipe, kept, done, seed=seed, threads=threads)
            training.clip.model.eval()
            classifier = _classifier(training, inputs, settings, recipe, threads)
            if parallel.rank() == 0:
                _write(training, classifier, inputs, settings, seed, outputs, kept.identity, found)
                if signals.number:  # who ends a job may remove what it wrote
                    kept.save(training, len(training.history))
                    kept.end(signals.number, len(training.history))
                checkpoints.remove(outputs.checkpoints)
    parallel.finish()


@dataclass(frozen=True)
class _Kept:
    """The checkpoints of a training."""

    folder: str
    identity: dict[str, Any]

    def resume(self, training: Training) -> int:
        """Go on from the newest one; return the number of steps done.

        One of other settings is set aside.
        """
        saved = checkpoints.latest(self.folder)
        if saved is None:
            return 0
        if why := checkpoints.difference(self.identity, saved):
            parallel.wait()  # until every process has read it
            if parallel.rank() == 0:
                checkpoints.set_aside(self.folder, why)
            parallel.wait()
            return 0
        with checkpoints.fitting(self.folder):
            training.restore(saved)
        log.info("Going on after step %d, from %s.", saved.steps, self.folder)
        return saved.steps

    def save(self, training: Training, steps: int) -> None:
        """Let process 0 add a checkpoint after so many steps."""
        if parallel.rank() == 0:
            checkpoints.save(self.folder, training.checkpoint(steps, self.identity))

    def end(self, number: int, steps: int) -> NoReturn:
        """End the process, as a signal asks, after the newest one."""
        raise Terminated(number, f"Step {steps} is kept in {self.folder}: rerun to go on.")


def _load(
    files: data.TrainingFiles,
    settings: FinetuneSettings,
    signals: Signals,
    *,
    seed: int,
    device: str,
    threads: int,
) -> tuple[Training, data.TrainingData, Recipe]:
    """Load a training before its first step, its data, and the numbers that it follows."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    clip, bank, inputs = model_setup.load(files, settings, device=device, threads=threads)
    recipe = settings.finetune.recipe(inputs.n_scheduled, _learning_rate(files.learning_rate))
    size = min(recipe.batch_size, len(inputs.paths))
    model_setup.prepare_training(clip, settings.compute, bank.tokens, size, recipe.batch_norm)
    return model_setup.training(clip, bank, inputs, settings, recipe, signals, seed), inputs, recipe


def _learning_rate(path: str | None) -> float | None:
    """Return the learning rate that `find_learning_rate` wrote."""
    return None if path is None else float(read_object(path, ["lr"])["lr"])


def _identity(settings: FinetuneSettings, seed: int, inputs: data.TrainingData) -> dict[str, Any]:
    """What decides the result of a training."""
    decisive = {key: value for key, value in asdict(settings).items() if key != "compute"}
    return {**decisive, "seed": seed, "digest of images, labels and captions": inputs.digest}


def _train(
    training: Training,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    recipe: Recipe,
    kept: _Kept,
    first: int,
    *,
    seed: int,
    threads: int,
) -> None:
    """Take all steps from number `first`.

    Raises:
        Terminated: a signal came; the step that was running is done and kept.
    """
    n = len(inputs.paths)
    if min(n, recipe.batch_size) < parallel.size():
        raise UserError(
            f"A batch of {min(n, recipe.batch_size)} images cannot be shared out among "
            f"{parallel.size()} processes; lower processes.finetune."
        )
    per_epoch = recipe.steps_per_epoch(inputs.n_scheduled)
    total = recipe.epochs * per_epoch

    def schedule() -> Iterator[list[tuple[int, int]]]:
        return data.schedule(n, recipe.batch_size, total, seed, first)

    files = image_cache.pictures_of(training.clip, inputs, settings, kept.folder, seed)
    batches = image_cache.batches(
        files,
        map(parallel.share, schedule()),
        Augmentation.of(training.clip),
        training.clip.device,
        threads,
    )
    progress = Progress(total, "steps", done=first)
    pace = _Pace()
    timer = checkpoints.Timer(settings.compute.checkpoint_minutes)
    for step, keys in enumerate(schedule(), first):
        epoch = step // per_epoch
        if step % per_epoch == 0:
            training.start_epoch()
        with pace.waiting(len(keys)):
            _, batch = next(batches)
        index = torch.tensor([index for _, index in keys])  # [B]
        rate = recipe.rate(step, total)
        logs = training.step(index, inputs.labels[index], batch, rate)
        training.record({"step": step, "epoch": epoch, "lr": rate, **logs})
        done = step + 1
        ends_epoch = done % per_epoch == 0
        is_settled = ends_epoch or training.ending or done % CHECK_EVERY == 0
        if is_settled:
            training.settle(pace.since_last)
        progress.add(1, f"epoch {epoch + 1} of {recipe.epochs}")
        # Process 0 alone looks at its clock, and it alone writes.
        if training.ending or (is_settled and done < total and timer.is_due()):
            kept.save(training, done)
            timer.restart()
        if training.ending:
            parallel.wait()  # for the checkpoint: torchrun kills the others when one is gone
            kept.end(training.ending, done)


def _classifier(
    training: Training,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    recipe: Recipe,
    threads: int,
) -> Classifier:
    """The classifier of the tuned model; every process takes part in encoding it."""
    if settings.head == "refit":
        size, template = recipe.batch_size, settings.words.template
        return _refit(training.clip, inputs, template, size, threads)
    return Classifier.of(training.objective.classifier())


def _write(
    training: Training,
    classifier: Classifier,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    seed: int,
    outputs: TrainingOutputs,
    identity: dict[str, Any],
    found: list[str],
) -> None:
    """Write the model with its classifier, and the history, which names the settings `found`.

    Where Snakemake was killed, its jobs go on, and a rerun starts them a second time. The first one
    to end has written what the second one would write.
    """
    metadata = {"settings": asdict(settings), "seed": seed, "marks": _marks(settings, training)}
    metadata["found"] = found  # keys of `finetune` that were "auto"
    metadata["training"] = digest_of([json.dumps(identity, sort_keys=True)])
    words = replace(settings.words, written=inputs.written_names)
    try:
        with replacing(outputs.model) as folder:
            clips.save(training.clip, classifier, inputs.classnames, words, folder)
    except UserError:
        if _training_of(outputs.history) != metadata["training"]:
            raise
        log.info("Another process of this training ended first, and wrote %s.", outputs.model)
        return
    columns = {name: [row.get(name) for row in training.history] for name in tables.HISTORY.names}
    tables.write(outputs.history, columns, tables.HISTORY, metadata)


def _training_of(history: str) -> object:
    """Return the digest of the training that wrote a history; None where there is none."""
    try:
        return tables.read_metadata(history, "step").get("training")
    except UserError:
        return None


def _marks(settings: FinetuneSettings, training: Training) -> list[str]:
    """What tables must say about the run besides its numbers."""
    marks = []
    if settings.labels == GROUND_TRUTH:
        marks.append("supervised")
    elif (settings.labels, settings.prototypes, settings.head) != ("zero_shot", "text", "tuned"):
        marks.append("ours")
    last = [row for row in training.history if row["epoch"] == training.history[-1]["epoch"]]
    agreement = sum(row["agreement"] for row in last) / len(last)
    collapsed = collapse(training.predicted, agreement)
    if collapsed:
        log.warning("The training looks collapsed: in the last epoch %s.", collapsed)
        marks.append("collapsed")
    return marks


def _refit(
    clip: clips.Clip, inputs: data.TrainingData, template: str, batch_size: int, threads: int
) -> Classifier:
    """Return the head of `image_prototypes` of the tuned features, the labels as the votes.

    Not in the paper. N training images, C classes, D embedding width.

    Args:
        clip: the tuned model.
        inputs: the N training images with their labels.
        template: of the class descriptions.
        batch_size: images encoded at once.
        threads: CPU threads.
    """
    clip.model.eval()
    features = encode_files(clip, inputs.paths, batch_size, threads)  # [N, D]
    texts = class_embeddings(clip, template, inputs.classnames)  # [C, D]
    scale = clip.model.logit_scale.exp().item()  # type: ignore[operator]
    images = CalibratedFeatures.of(features, texts, scale)
    fused = fuse(images, label_votes(inputs.labels, len(texts)))
    return images.classifier(fused.weights, scale)


class _Pace:
    """Counts from one look at the losses to the next.

    A GPU works behind the steps that it is given; only where its results are waited for does time
    say something, so that all steps in between share one speed.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._began, self._waited, self._images = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self, images: int) -> Iterator[None]:
        """Around the wait for a batch of so many images."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._images += images

    def since_last(self) -> dict[str, float]:
        """Speed and share of waiting since the last call, as columns of the history."""
        seconds = time.monotonic() - self._began
        found = {
            "images_per_second": self._images / seconds,
            "data_wait": self._waited / seconds,
        }
        self._start()
        return found
