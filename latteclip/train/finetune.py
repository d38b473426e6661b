"""The training loop: both CLIP towers under an objective."""

import contextlib
import json
import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.config import hub_names
from latteclip.config.keys import AUTO
from latteclip.core import tables
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import (
    digest_of,
    fingerprint,
    new_folder,
    read_object,
    remove_left_over,
    replacing,
)
from latteclip.core.signals import Terminated, ending_in_order
from latteclip.core.terminal import Progress
from latteclip.train.data import TrainingFiles, schedule
from latteclip.train.images import TrainingImages
from latteclip.train.settings import FinetuneSettings, TrainingMetadata, recipe_for
from latteclip.train.training import DivergedError, Setup, Training

log = logging.getLogger(__name__)
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device
MIN_CLASSES = 0.5  # share of the classes that a sound model predicts
MIN_AGREEMENT = 0.25  # with the pseudo-labels; chance is 1 / C
clock = time.monotonic


def finetune(
    files: TrainingFiles,
    settings: FinetuneSettings,
    model_output: str,
    history_output: str,
    checkpoint: str,
    decoded: str | None = None,
    *,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Fine-tune CLIP on the images that are not in the test split.

    Only a supervised training reads labels. An interrupted run resumes from its last
    checkpoint, and on a CPU gives the same bytes as an uninterrupted one. SIGTERM and Ctrl-C save
    the current step. A training that diverges at a rate of `find_learning_rate` leaves the
    pretrained model, marked "diverged". UserError: an input does not fit, or it diverged at a rate
    set by hand.
    """
    if not Path(history_output).exists():
        new_folder(model_output)  # before the work, and not after it
    log.info("The training has %d threads of %s cores.", threads, os.cpu_count())
    with ending_in_order(
        "Nothing was trained yet: a rerun starts from the beginning."
    ) as signals:
        torch.manual_seed(seed)
        setup = Setup(files, settings, device, threads)
        rate = (
            read_object(files.learning_rate, ["lr"])["lr"] if files.learning_rate else None
        )
        section = settings.method.finetune
        recipe = recipe_for(section, setup.inputs.n_scheduled, rate)
        auto = [key for key, value in section if value == AUTO]
        settings = settings.with_recipe(recipe)
        identity = _identity(settings, seed, setup.inputs.digest)
        if _was_trained(model_output, history_output, identity):
            return
        checkpoints = CheckpointManager(checkpoint, identity)
        training = setup.training(recipe, signals, seed)
        diverged = False
        signals.are_deferred = True  # neither a step nor the writing may be interrupted
        try:
            images = setup.images(seed, decoded)
            _train(training, setup, checkpoints, images)
        except DivergedError as error:
            if "lr" not in auto:
                raise
            log.warning("%s The rate was found: the model stays as pretrained.", error)
            diverged = True
            training = _untrained(training, setup, seed)
        setup.clip.model.eval()
        classifier = Classifier.of(training.objective.classifier())
        metadata = TrainingMetadata(
            model=settings.clip.model,
            pretrained=settings.clip.pretrained,
            objective=settings.method.objective,
            labels=settings.labels,
            recipe=recipe,
            found=auto,
            seed=seed,
            flags=_flags(settings, training, diverged),
            drawn=setup.inputs.drawn,
            identity=identity,
        )
        _write(setup, classifier, training.history, metadata, model_output, history_output)
        if signals.number and not diverged:  # its sender may remove what the job wrote
            checkpoints.save(training)
            raise checkpoints.terminated(training)
        shutil.rmtree(checkpoint, ignore_errors=True)


def _identity(settings: FinetuneSettings, seed: int, inputs: str) -> str:
    """Return a digest of all that decides the result, of which `inputs` is that of the data."""
    decisive = settings.model_dump(exclude={"compute"})
    decisive |= {
        "seed": seed,
        "digest of images, labels and captions": inputs,
    }
    if local := hub_names.clip(settings.clip).path:
        decisive["digest of the model"] = fingerprint(local)
    return digest_of([json.dumps(decisive, sort_keys=True)])


def _untrained(diverged: Training, setup: Setup, seed: int) -> Training:
    """Return a training of the pretrained model, with the history of the one that diverged."""
    section = setup.settings.clip
    pretrained = clips.load(section.model, section.pretrained, torch.device("cpu"))
    setup.clip.model.load_state_dict(pretrained.model.state_dict())
    training = setup.training(diverged.recipe, diverged.signals, seed)
    training.history = diverged.history
    return training


class CheckpointManager:
    """The newest checkpoint of a training. Those of others in its folder stay until its end."""

    def __init__(self, folder: str, identity: str) -> None:
        """Start the clock. `identity` is the digest of all that decides the result."""
        self.folder = Path(folder)
        self.identity = identity[:16]
        self.saved = clock()

    def _own(self) -> list[Path]:
        return sorted(self.folder.glob(f"step-*-{self.identity}.pt"))

    def resume(self, training: Training) -> int:
        """Continue from the newest checkpoint and return the number of steps done."""
        if not (own := self._own()):
            if any(self.folder.glob("step-*.pt")):
                log.warning("%s has the checkpoint of another training.", self.folder)
            return 0
        try:
            state = torch.load(own[-1], map_location="cpu", weights_only=True)
        except Exception as error:  # pickle and zip files raise errors of every kind
            log.warning(
                "%s cannot be read (%s); starting again.", own[-1], first_line(error)
            )
            return 0
        training.load_state_dict(state)
        log.info("Resuming after step %d, from %s.", len(training.history), self.folder)
        return len(training.history)

    def save(self, training: Training) -> None:
        """Replace the checkpoint."""
        self.saved = clock()
        path = self.folder / f"step-{len(training.history):08d}-{self.identity}.pt"
        # To an open file: given a path, torch has another message for a full disk.
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(training.state_dict(), file)
        for other in set(self._own()) - {path}:
            other.unlink(missing_ok=True)
        remove_left_over(self.folder)

    def terminated(self, training: Training) -> Terminated:
        """Return the exception that ends the process after `save`."""
        saved = f"Step {len(training.history)} is saved in {self.folder}: rerun to resume."
        return Terminated(training.signals.number, saved)


def _train(
    training: Training, setup: Setup, checkpoints: CheckpointManager, images: TrainingImages
) -> None:
    """Take all steps from the last checkpoint on. After a signal, save and raise Terminated."""
    recipe = training.recipe
    inputs = setup.inputs
    compute = setup.settings.compute
    first = checkpoints.resume(training)
    per_epoch = recipe.steps_per_epoch(inputs.n_scheduled)
    total = recipe.epochs * per_epoch
    keys = schedule(len(inputs.paths), recipe.batch_size, total, images.seed, first)
    batches = setup.batches(images, keys)
    progress = Progress(total, "steps", done=first)
    for done in training.steps(batches, total, per_epoch, first):
        stopped = training.signals.number
        is_flushed = stopped or done % per_epoch == 0 or done % CHECK_EVERY == 0
        if is_flushed:
            training.flush_metrics()
        progress.add(1, f"epoch {(done - 1) // per_epoch + 1} of {recipe.epochs}")
        if stopped:
            checkpoints.save(training)
            raise checkpoints.terminated(training)
        minutes = (clock() - checkpoints.saved) / 60
        if is_flushed and done < total and minutes >= compute.checkpoint_minutes:
            checkpoints.save(training)
    if not all(each.isfinite().all() for each in training.clip.model.parameters()):
        raise DivergedError("The last step left weights that are not finite")


def _write(
    setup: Setup,
    classifier: Classifier,
    history: list[dict[str, Any]],
    metadata: TrainingMetadata,
    model_output: str,
    history_output: str,
) -> None:
    class_templates = replace(
        setup.settings.class_templates, written=setup.inputs.written_names
    )
    if _was_trained(model_output, history_output, metadata.identity):
        return
    with replacing(model_output) as folder:
        clips.save(setup.clip, classifier, setup.inputs.classnames, class_templates, folder)
    columns = {}
    for name in tables.HISTORY.names:
        columns[name] = [row.get(name) for row in history]
    tables.write(history_output, columns, tables.HISTORY, metadata)


def _was_trained(model_output: str, history_output: str, identity: str) -> bool:
    """Return whether another process wrote this model. UserError: there is another in its place.

    Jobs of a killed Snakemake go on beside those of a rerun, and the first wins.
    """
    if Path(model_output).is_dir() and Path(history_output).is_file():
        with contextlib.suppress(UserError):  # a damaged history is written again
            found = tables.read_metadata(history_output, TrainingMetadata).identity
            if found == identity:
                log.info("Another process of this training wrote %s.", model_output)
                return True
    new_folder(model_output)
    return False


def _flags(settings: FinetuneSettings, training: Training, diverged: bool) -> list[str]:
    """Return the keys of `core.tables.FLAGS` that apply to a run."""
    flags = []
    method = settings.method
    if settings.is_supervised:
        flags.append("supervised")
    elif method.pseudo_labels != "zero_shot":
        flags.append("ours")
    if diverged:
        return [*flags, "diverged"]
    last = [
        row for row in training.history if row["epoch"] == training.history[-1]["epoch"]
    ]
    agreement = sum(row["agreement"] for row in last) / len(last)
    predicted = int((training.predicted > 0).sum())
    n = len(training.predicted)
    if predicted < MIN_CLASSES * n or agreement < MIN_AGREEMENT:
        log.warning(
            "The training looks collapsed: in the last epoch %d of %d classes are predicted, and "
            "%.0f %% of the predictions agree with the pseudo-labels.",
            predicted,
            n,
            100 * agreement,
        )
        flags.append("collapsed")
    return flags
