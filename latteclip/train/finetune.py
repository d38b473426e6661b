"""The training loop: both CLIP towers under an objective.

Letters: N training images, C classes, D embedding width.
"""

import json
import logging
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import class_embeddings, encode_files
from latteclip.core import tables
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import read_object, refuse_folder, remove_left_over, replacing
from latteclip.core.hashing import digest_of
from latteclip.core.signals import Terminated, ending_in_order
from latteclip.core.steps import AUTO
from latteclip.core.terminal import Progress
from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import CalibratedFeatures, label_votes
from latteclip.train import data, parallel
from latteclip.train.data import TrainingFiles
from latteclip.train.settings import GROUND_TRUTH, FinetuneSettings
from latteclip.train.training import DivergedError, Setup, Training, collapse

log = logging.getLogger(__name__)
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device
clock = time.monotonic


def finetune(
    files: TrainingFiles,
    settings: FinetuneSettings,
    model_output: str,
    history_output: str,
    checkpoint: str,
    *,
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
        files: the inputs.
        settings: of the training.
        model_output: folder of the model.
        history_output: a HISTORY table.
        checkpoint: folder of the checkpoint, removed at the end.
        seed: of the order of the images, their augmentation and the drawn groups.
        device: cpu, cuda or auto.
        threads: CPU threads.

    Raises:
        UserError: an input does not fit, or the training diverged at a rate set by hand.
    """
    refuse_folder(model_output)  # before the work, and not after it
    parallel.start(device)
    log.info("The training has %d threads of %s cores.", threads, os.cpu_count())
    threads = max(1, threads // parallel.size())
    with ending_in_order("Nothing was trained yet: a rerun starts from the beginning.") as signals:
        torch.manual_seed(seed)
        setup = Setup.load(files, settings, device, threads)
        rate = read_object(files.learning_rate, ["lr"])["lr"] if files.learning_rate else None
        recipe = settings.finetune.recipe(setup.inputs.n_scheduled, rate)
        batch_size = min(recipe.batch_size, len(setup.inputs.paths))
        if batch_size < parallel.size():
            raise UserError(
                f"A batch of {batch_size} images cannot be shared out among {parallel.size()} "
                "processes; lower processes.finetune."
            )
        setup.prepare(batch_size)
        auto = [key for key, value in vars(settings.finetune).items() if value == AUTO]
        settings = replace(settings, finetune=recipe)
        decisive = {key: value for key, value in asdict(settings).items() if key != "compute"}
        digest = setup.inputs.digest
        identity = {**decisive, "seed": seed, "digest of images, labels and captions": digest}
        checkpoints = CheckpointManager(checkpoint, identity)
        training, diverged = setup.training(recipe, signals, seed), False
        with signals.deferred():  # neither a step nor the writing may be interrupted
            try:
                with setup.explaining_memory(batch_size):
                    _train(training, setup, checkpoints, seed)
            except DivergedError as error:
                if "lr" not in auto:
                    raise
                log.warning(
                    "%s That rate was found automatically: the model stays untrained.", error
                )
                pretrained = clips.load(settings.model, settings.pretrained, torch.device("cpu"))
                setup.clip.model.load_state_dict(pretrained.model.state_dict())
                history, diverged = training.history, True
                training = setup.training(recipe, signals, seed)
                training.history = history
            setup.clip.model.eval()
            classifier = _classifier(training, setup)  # every process takes part in encoding it
            if parallel.rank() == 0:
                metadata = {
                    "settings": asdict(settings),
                    "seed": seed,
                    "marks": _marks(settings, training, diverged),
                    "found": auto,  # keys of `finetune` that were "auto"
                    "drawn": setup.inputs.drawn,
                    "training": digest_of([json.dumps(identity, sort_keys=True)]),
                }
                _write(setup, classifier, training.history, metadata, model_output, history_output)
                if signals.number and not diverged:  # its sender may remove what the job wrote
                    checkpoints.save(training)
                    raise checkpoints.terminated(training)
                checkpoints.remove()
    parallel.finish()


class CheckpointManager:
    """The newest checkpoint of a training, a file in a folder of this training alone."""

    def __init__(self, folder: str, identity: dict[str, Any]) -> None:
        """Start the clock. `identity` is what decides the result of the training."""
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
                shutil.rmtree(self.aside, ignore_errors=True)
                self.folder.rename(self.aside)
                log.warning(
                    "The checkpoint of an unfinished training differs in %s: it stays in %s until "
                    "this training, which starts from the beginning, is finished.",
                    key,
                    self.aside,
                )
            parallel.wait()
            return 0
        training.load_state_dict(saved["training"])
        steps = len(training.history)
        log.info("Resuming after step %d, from %s.", steps, self.folder)
        return steps

    def save(self, training: Training) -> None:
        """Let process 0 replace the checkpoint."""
        self._last = clock()
        if parallel.rank() > 0:
            return
        path = self.folder / f"step-{len(training.history):08d}.pt"
        with replacing(path) as temporary:
            torch.save({"identity": self.identity, "training": training.state_dict()}, temporary)
        for other in self.folder.glob("step-*.pt"):
            if other != path:
                other.unlink(missing_ok=True)
        remove_left_over(self.folder)

    def terminated(self, training: Training) -> Terminated:
        """Return the exception that ends the process after a signal and a checkpoint."""
        saved = f"Step {len(training.history)} is saved in {self.folder}: rerun to resume."
        return Terminated(training.stop_signal or training.signals.number, saved)

    def is_due(self, minutes: float) -> bool:
        """Return whether the last checkpoint is so old."""
        return clock() - self._last >= 60 * minutes

    def remove(self) -> None:
        """Remove the checkpoint of a finished training, and what was set aside."""
        for folder in (self.folder, self.aside):
            shutil.rmtree(folder, ignore_errors=True)


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


def _train(training: Training, setup: Setup, checkpoints: CheckpointManager, seed: int) -> None:
    """Take all steps from the last checkpoint on.

    Raises:
        DivergedError: a loss or a weight is not finite.
        Terminated: a signal came. The current step is finished and saved.
    """
    recipe, inputs, minutes = (
        training.recipe,
        setup.inputs,
        setup.settings.compute.checkpoint_minutes,
    )
    first = checkpoints.resume(training)
    per_epoch = recipe.steps_per_epoch(inputs.n_scheduled)
    total = recipe.epochs * per_epoch
    keys = data.schedule(len(inputs.paths), recipe.batch_size, total, seed, first)
    batches = setup.batches(setup.images(str(checkpoints.folder), seed), keys)
    progress = Progress(total, "steps", done=first)
    for done in training.steps(batches, inputs.labels, total, per_epoch, first):
        is_flushed = done % per_epoch == 0 or training.stop_signal or done % CHECK_EVERY == 0
        if is_flushed:
            training.flush_metrics()
        progress.add(1, f"epoch {(done - 1) // per_epoch + 1} of {recipe.epochs}")
        if training.stop_signal:
            checkpoints.save(training)
            parallel.wait()  # for the checkpoint: torchrun kills the others when a process is gone
            raise checkpoints.terminated(training)
        if is_flushed and done < total and checkpoints.is_due(minutes):
            checkpoints.save(training)
    if not all(each.isfinite().all() for each in training.clip.model.parameters()):
        raise DivergedError(
            "The last step left weights that are not finite; nothing was written: lower "
            "finetune.lr or raise finetune.warmup_steps."
        )


def _classifier(training: Training, setup: Setup) -> Classifier:
    """Return the classifier of the fine-tuned model, which is in evaluation mode.

    A refit head, which is not in the paper, is that of `image_prototypes` for the fine-tuned
    features, the labels as the votes.
    """
    if setup.settings.head != "refit":
        return Classifier.of(training.objective.classifier())
    clip, inputs = setup.clip, setup.inputs
    features = encode_files(clip, inputs.paths, training.recipe.batch_size, setup.threads)  # [N, D]
    texts = class_embeddings(clip, setup.settings.words.template, inputs.classnames)  # [C, D]
    scale = training.logit_scale.exp().item()
    images = CalibratedFeatures.of(features, texts, scale)
    fused = fuse(images, label_votes(inputs.labels, len(texts)))
    return images.classifier(fused.weights, scale)


def _write(
    setup: Setup,
    classifier: Classifier,
    history: list[dict[str, Any]],
    metadata: dict[str, Any],
    model_output: str,
    history_output: str,
) -> None:
    """Write the model with its classifier, and the history.

    If Snakemake was killed, its jobs continue, and a rerun starts them a second time. The first to
    end has written what the second would write.
    """
    inputs = setup.inputs
    words = replace(setup.settings.words, written=inputs.written_names)
    try:
        with replacing(model_output) as folder:
            clips.save(setup.clip, classifier, inputs.classnames, words, folder)
    except UserError:
        if not Path(history_output).exists():
            raise
        if tables.read_metadata(history_output, "step").get("training") != metadata["training"]:
            raise
        log.info("Another process of this training ended first, and wrote %s.", model_output)
        return
    columns = {name: [row.get(name) for row in history] for name in tables.HISTORY.names}
    tables.write(history_output, columns, tables.HISTORY, metadata)


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
