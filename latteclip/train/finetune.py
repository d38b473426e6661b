"""The training loop: both CLIP towers under an objective.

Letters: N training images, B batch, C classes, D embedding width.
"""

import contextlib
import json
import logging
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import class_embeddings, encode_files
from latteclip.core import devices, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import read_object, refuse_folder, remove_left_over, replacing
from latteclip.core.hashing import digest_of
from latteclip.core.signals import Terminated, ending_in_order
from latteclip.core.steps import AUTO
from latteclip.core.terminal import Progress
from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import CalibratedFeatures, label_votes
from latteclip.train import data, image_cache, model_setup, parallel
from latteclip.train.augment import Augmentation
from latteclip.train.settings import GROUND_TRUTH, FinetuneSettings, Recipe
from latteclip.train.step import DivergedError, Training, collapse

log = logging.getLogger(__name__)
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device
clock = time.monotonic


def finetune(
    images_path: str,
    pseudo_labels_path: str,
    settings: FinetuneSettings,
    model_output: str,
    history_output: str,
    checkpoint: str,
    *,
    image_captions_path: str | None = None,
    group_captions_path: str | None = None,
    fused_labels_path: str | None = None,
    calibrated_path: str | None = None,
    image_prototypes_path: str | None = None,
    learning_rate_path: str | None = None,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Fine-tune CLIP on the images that are not in the test split.

    Only the objective `flyp_supervised` reads labels. Writes the model (see `clip.model.save`) and
    one row of tables.HISTORY per step. An interrupted run resumes from its last checkpoint and
    gives the same bytes as an uninterrupted one. On SIGTERM and Ctrl-C the current step is
    finished and saved as a checkpoint. The checkpoints are removed at the end.

    If a training diverges at a learning rate of `find_learning_rate`, the pretrained model is
    written, marked "diverged".

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table.
        settings: of the training.
        model_output: folder of the model.
        history_output: a HISTORY table.
        checkpoint: folder of the checkpoint, removed at the end.
        image_captions_path: a CAPTIONS table, if the method needs it.
        group_captions_path: a CAPTIONS table, if the method needs it.
        fused_labels_path: a FUSED_LABELS table, if the method needs it.
        calibrated_path: the zero-shot classifier without class means.
        image_prototypes_path: the classifier that prototypes start from.
        learning_rate_path: output of `find_learning_rate`, if finetune.lr is auto.
        seed: of the order of the images, their augmentation and the drawn groups.
        device: cpu, cuda or auto.
        threads: CPU threads.

    Raises:
        UserError: an input does not fit, or the training diverged at a rate set by hand.
    """
    files = data.TrainingFiles(
        images_path,
        pseudo_labels_path,
        image_captions_path,
        group_captions_path,
        fused_labels_path,
        calibrated_path,
        image_prototypes_path,
        learning_rate_path,
    )
    refuse_folder(model_output)  # before the work, and not after it
    parallel.start(device)
    log.info("The training has %s.", devices.cores_in_use(threads))
    threads = max(1, threads // parallel.size())
    with ending_in_order("Nothing was trained yet: a rerun starts from the beginning.") as signals:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        clip, texts, inputs = model_setup.load(files, settings, device=device, threads=threads)
        rate = read_object(files.learning_rate, ["lr"])["lr"] if files.learning_rate else None
        recipe = settings.finetune.recipe(inputs.n_scheduled, rate)
        batch_size = min(recipe.batch_size, len(inputs.paths))
        model_setup.prepare_training(
            clip, settings.compute, texts.tokens, batch_size, recipe.batch_norm
        )
        auto = [key for key, value in vars(settings.finetune).items() if value == AUTO]
        settings = replace(settings, finetune=recipe)
        identity = _identity(settings, seed, inputs)
        checkpoints = CheckpointManager(checkpoint, identity)

        def new_training() -> Training:
            return model_setup.new_training(clip, texts, inputs, settings, recipe, signals, seed)

        training = new_training()
        diverged = False
        with signals.deferred():  # neither a step nor the writing may be interrupted
            try:
                with model_setup.explaining_memory(clip, batch_size, recipe.batch_norm):
                    _train(training, inputs, settings, recipe, checkpoints, seed, threads)
            except DivergedError as error:
                if "lr" not in auto:
                    raise
                log.warning(
                    "%s That rate was found automatically: the model stays untrained.", error
                )
                diverged, history = True, training.history
                _load_pretrained(clip, settings)
                training = new_training()
                training.history = history
            clip.model.eval()
            classifier = _classifier(training, inputs, settings, recipe, threads)
            if parallel.rank() == 0:
                metadata = {
                    "settings": asdict(settings),
                    "seed": seed,
                    "marks": _marks(settings, training, diverged),
                    "found": auto,  # keys of `finetune` that were "auto"
                    "training": digest_of([json.dumps(identity, sort_keys=True)]),
                }
                words = replace(settings.words, written=inputs.written_names)
                _write(
                    training,
                    classifier,
                    inputs.classnames,
                    words,
                    metadata,
                    model_output,
                    history_output,
                )
                if signals.number and not diverged:  # its sender may remove what the job wrote
                    checkpoints.save(training)
                    raise checkpoints.terminated(signals.number, len(training.history))
                checkpoints.remove()
    parallel.finish()


def _identity(settings: FinetuneSettings, seed: int, inputs: data.TrainingData) -> dict[str, Any]:
    """Return what decides the result of a training."""
    decisive = {key: value for key, value in asdict(settings).items() if key != "compute"}
    return {**decisive, "seed": seed, "digest of images, labels and captions": inputs.digest}


def _load_pretrained(clip: clips.Clip, settings: FinetuneSettings) -> None:
    """Set the weights of a model back to those of pretraining."""
    pretrained = clips.load(settings.model, settings.pretrained, torch.device("cpu"))
    clip.model.load_state_dict(pretrained.model.state_dict())


class CheckpointManager:
    """The newest checkpoint of a training, a file in a folder."""

    def __init__(self, folder: str, identity: dict[str, Any]) -> None:
        """Start the clock.

        Args:
            folder: of this training alone.
            identity: what decides the result of the training.
        """
        self.folder, self.identity = Path(folder), identity
        self.aside = Path(f"{folder}-before")  # for checkpoints of other settings
        self._last = clock()

    def resume(self, training: Training) -> int:
        """Continue from the newest checkpoint and return the number of steps done.

        A checkpoint of other settings is set aside.
        """
        path = max(self.folder.glob("step-*.pt"), default=None)
        if path is None:
            return 0
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle and zip files raise errors of every kind
            log.warning("%s cannot be read (%s); starting again.", path, first_line(error))
            return 0
        if key := _difference(self.identity, saved["identity"]):
            parallel.wait()  # until every process has read it
            if parallel.rank() == 0:
                self._set_aside(key)
            parallel.wait()
            return 0
        training.load_state_dict(saved["training"])
        steps = int(saved["steps"])
        log.info("Resuming after step %d, from %s.", steps, self.folder)
        return steps

    def save(self, training: Training) -> None:
        """Let process 0 replace the checkpoint."""
        self._last = clock()
        if parallel.rank() > 0:
            return
        steps = len(training.history)
        path = self.folder / f"step-{steps:08d}.pt"
        state = {"identity": self.identity, "steps": steps, "training": training.state_dict()}
        with replacing(path) as temporary:
            torch.save(state, temporary)
        for other in self.folder.glob("step-*.pt"):
            if other != path:
                other.unlink(missing_ok=True)
        remove_left_over(self.folder)

    def terminated(self, signal: int, steps: int) -> Terminated:
        """Return the exception that ends the process after a signal and a checkpoint."""
        return Terminated(signal, f"Step {steps} is saved in {self.folder}: rerun to resume.")

    def is_due(self, minutes: float) -> bool:
        """Return whether the last checkpoint is so old."""
        return clock() - self._last >= 60 * minutes

    def remove(self) -> None:
        """Remove the checkpoint of a finished training, and what was set aside."""
        for folder in (self.folder, self.aside):
            shutil.rmtree(folder, ignore_errors=True)

    def _set_aside(self, key: str) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)
        self.folder.rename(self.aside)
        log.warning(
            "The checkpoint of an unfinished training differs in %s: it stays in %s until this "
            "training, which starts from the beginning, is finished.",
            key,
            self.aside,
        )


def _difference(wanted: dict[str, Any], saved: dict[str, Any]) -> str | None:
    """Return the first key, with dots, in which nested settings differ."""
    for key in (*wanted, *saved):
        one, other = wanted.get(key), saved.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if inner := _difference(one, other):
                return f"{key}.{inner}"
        elif one != other:
            return key
    return None


def _train(
    training: Training,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    recipe: Recipe,
    checkpoints: CheckpointManager,
    seed: int,
    threads: int,
) -> None:
    """Take all steps from the last checkpoint on.

    Raises:
        DivergedError: a loss or a weight is not finite.
        Terminated: a signal came. The current step is finished and saved.
    """
    n = len(inputs.paths)
    if min(n, recipe.batch_size) < parallel.size():
        raise UserError(
            f"A batch of {min(n, recipe.batch_size)} images cannot be shared out among "
            f"{parallel.size()} processes; lower processes.finetune."
        )
    first = checkpoints.resume(training)
    per_epoch = recipe.steps_per_epoch(inputs.n_scheduled)
    total = recipe.epochs * per_epoch

    def schedule() -> Iterator[list[tuple[int, int]]]:
        return data.schedule(n, recipe.batch_size, total, seed, first)

    folder = str(checkpoints.folder)
    pictures = image_cache.training_images(training.clip, inputs, settings, folder, seed)
    transform, keys = Augmentation.of(training.clip), map(parallel.share, schedule())
    batches = image_cache.batches(pictures, keys, transform, training.clip.device, threads)
    progress = Progress(total, "steps", done=first)
    throughput = _ThroughputMeter()
    for step, keys_of_step in enumerate(schedule(), first):
        epoch = step // per_epoch
        if step % per_epoch == 0:
            training.start_epoch()
        with throughput.waiting(len(keys_of_step)):
            _, batch = next(batches)
        index = torch.tensor([index for _, index in keys_of_step])  # [B]
        rate = recipe.rate(step, total)
        logs = training.step(index, inputs.labels[index], batch, rate)
        training.record({"step": step, "epoch": epoch, "lr": rate, **logs})
        done = step + 1
        is_flushed = done % per_epoch == 0 or training.stop_signal or done % CHECK_EVERY == 0
        if is_flushed:
            training.flush_metrics(throughput.since_last)
        progress.add(1, f"epoch {epoch + 1} of {recipe.epochs}")
        if training.stop_signal:
            checkpoints.save(training)
            parallel.wait()  # for the checkpoint: torchrun kills the others when a process is gone
            raise checkpoints.terminated(training.stop_signal, done)
        if is_flushed and done < total and checkpoints.is_due(settings.compute.checkpoint_minutes):
            checkpoints.save(training)
    if not all(each.isfinite().all() for each in training.clip.model.parameters()):
        raise DivergedError(
            "The last step left weights that are not finite; nothing was written: lower "
            "finetune.lr or raise finetune.warmup_steps."
        )


def _classifier(
    training: Training,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    recipe: Recipe,
    threads: int,
) -> Classifier:
    """Return the classifier of the fine-tuned model. Every process takes part in encoding it."""
    if settings.head == "refit":
        size, template = recipe.batch_size, settings.words.template
        return _refit_head(training.clip, inputs, template, size, threads)
    return Classifier.of(training.objective.classifier())


def _refit_head(
    clip: clips.Clip, inputs: data.TrainingData, template: str, batch_size: int, threads: int
) -> Classifier:
    """Return the head of `image_prototypes` for the fine-tuned features, the labels as the votes.

    Not in the paper.

    Args:
        clip: the fine-tuned model.
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


def _write(
    training: Training,
    classifier: Classifier,
    classnames: list[str],
    words: ClassTemplates,
    metadata: dict[str, Any],
    model_output: str,
    history_output: str,
) -> None:
    """Write the model with its classifier, and the history.

    If Snakemake was killed, its jobs continue, and a rerun starts them a second time. The first to
    end has written what the second would write.
    """
    try:
        with replacing(model_output) as folder:
            clips.save(training.clip, classifier, classnames, words, folder)
    except UserError:
        if _training_of(history_output) != metadata["training"]:
            raise
        log.info("Another process of this training ended first, and wrote %s.", model_output)
        return
    columns = {name: [row.get(name) for row in training.history] for name in tables.HISTORY.names}
    tables.write(history_output, columns, tables.HISTORY, metadata)


def _training_of(history: str) -> object:
    """Return the digest of the training that wrote a history; None if there is no history."""
    try:
        return tables.read_metadata(history, "step").get("training")
    except UserError:
        return None


def _marks(settings: FinetuneSettings, training: Training, diverged: bool) -> list[str]:
    """Return the keys of `results.MARKS` that apply to a run."""
    marks = []
    if settings.labels == GROUND_TRUTH:
        marks.append("supervised")
    elif (settings.labels, settings.prototypes, settings.head) != ("zero_shot", "text", "tuned"):
        marks.append("ours")
    if diverged:
        return [*marks, "diverged"]
    last = [row for row in training.history if row["epoch"] == training.history[-1]["epoch"]]
    agreement = sum(row["agreement"] for row in last) / len(last)
    collapsed = collapse(training.predicted, agreement)
    if collapsed:
        log.warning("The training looks collapsed: in the last epoch %s.", collapsed)
        marks.append("collapsed")
    return marks


class _ThroughputMeter:
    """Counts images and waiting time between two flushes of the metrics.

    A GPU runs behind the steps that it is given, so times are known only where its results are
    waited for. All steps in between share one speed.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._began, self._waited, self._images = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self, images: int) -> Iterator[None]:
        """Measure the wait for a batch of so many images."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._images += images

    def since_last(self) -> dict[str, float]:
        """Return speed and share of waiting since the last call, as columns of the history."""
        seconds = time.monotonic() - self._began
        columns = {
            "images_per_second": self._images / seconds,
            "data_wait": self._waited / seconds,
        }
        self._start()
        return columns
