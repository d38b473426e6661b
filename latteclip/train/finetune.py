"""The training loop: both CLIP towers under an objective."""

import json
import logging
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.config.models import clip_model
from latteclip.core import tables
from latteclip.core.errors import Signals, Terminated, ending_in_order
from latteclip.core.files import (
    digest,
    fingerprint,
    new_folder,
    read_object,
    replacing,
)
from latteclip.core.holdout import Fold
from latteclip.train.data import TrainingFiles, TrainingImages, schedule
from latteclip.train.settings import (
    FinetuneSettings,
    Recipe,
    TrainingMetadata,
    recipe_for,
    steps_per_epoch,
)
from latteclip.train.training import Setup, Training, diverged

log = logging.getLogger(__name__)
# Steps between looks at the losses: each look waits for the device.
CHECK_EVERY = 20
MIN_CLASSES = 0.5  # share of the classes that a sound model predicts
MIN_AGREEMENT = 0.25  # with the pseudo-labels; chance is 1 / C


def finetune(
    files: TrainingFiles,
    settings: FinetuneSettings,
    fold: Fold,
    model_output: str,
    history_output: str,
    checkpoint: str,
    decoded: str | None = None,
    *,
    seed: int,
    checkpoint_minutes: float,
    device: str,
    threads: int,
) -> None:
    """Fine-tune CLIP on the images that are not in the test split.

    Without the images of the fold. Only a supervised training reads labels. An interrupted run
    resumes from its last checkpoint, and on a CPU gives the same bytes as an uninterrupted one.
    SIGTERM and Ctrl-C save the current step. UserError: an input does not fit, or the loss is not
    finite.
    """
    with ending_in_order(
        "Nothing was trained yet: a rerun starts from the beginning."
    ) as signals:
        torch.manual_seed(seed)
        setup = Setup(files, settings, device, threads, fold)
        n = setup.inputs.n_scheduled
        found = files.learning_rate
        lr = read_object(found)["lr"] if found else None
        recipe = recipe_for(settings.method.finetune, n, lr)
        identity = _identity(settings, fold, recipe, seed, setup.inputs.digest)
        if _was_trained(model_output, history_output, identity):
            return
        training = setup.training(recipe, seed)
        # Neither a step nor the writing may be interrupted.
        signals.are_deferred = True
        images = setup.images(seed, decoded)
        saved = Checkpoint(checkpoint, identity, checkpoint_minutes)
        _train(training, setup, saved, images, signals)
        metadata = TrainingMetadata(
            model=settings.clip.model,
            pretrained=settings.clip.pretrained,
            labels=settings.labels,
            recipe=recipe,
            flags=_flags(settings, training),
            drawn=setup.inputs.drawn,
            identity=identity,
        )
        _write(setup, training, metadata, model_output, history_output)
        if not signals.number:  # its sender may remove what the job wrote
            shutil.rmtree(checkpoint, ignore_errors=True)


def _identity(
    settings: FinetuneSettings, fold: Fold, recipe: Recipe, seed: int, inputs: str
) -> str:
    """Return a digest of all that decides the result, of which `inputs` is that of the data."""
    decisive = {
        **settings.model_dump(),
        "fold": asdict(fold),
        "recipe": asdict(recipe),
        "seed": seed,
        "inputs": inputs,
    }
    clip = clip_model(settings.clip.model, settings.clip.pretrained)
    if clip.path:
        decisive["model"] = fingerprint(clip.path)
    return digest(json.dumps(decisive, sort_keys=True))


class Checkpoint:
    """The checkpoint of a training. Those of others in its folder stay until its end."""

    def __init__(self, folder: str, identity: str, minutes: float) -> None:
        """Start the clock. `identity` is the digest of all that decides the result."""
        self.minutes = minutes  # between two checkpoints
        self.path = Path(folder, f"{identity[:16]}.pt")
        self.saved = time.monotonic()

    def resume(self, training: Training) -> int:
        """Continue from the checkpoint, if there is one, and return the number of steps done."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        training.load_state_dict(state)
        log.info(
            "Resuming after step %d, from %s.", len(training.history), self.path
        )
        return len(training.history)

    def save(self, training: Training) -> None:
        self.saved = time.monotonic()
        # To an open file: given a path, torch has another message for a full disk.
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            torch.save(training.state_dict(), file)


def _train(
    training: Training,
    setup: Setup,
    checkpoint: Checkpoint,
    images: TrainingImages,
    signals: Signals,
) -> None:
    """Take all steps from the last checkpoint on. After a signal, save and raise Terminated."""
    recipe = training.recipe
    inputs = setup.inputs
    first = checkpoint.resume(training)
    per_epoch = steps_per_epoch(inputs.n_scheduled, recipe.batch_size)
    total = recipe.epochs * per_epoch
    keys = schedule(
        range(len(inputs.paths)), recipe.batch_size, total, images.seed, first
    )
    batches = setup.batches(images, keys)
    for done in training.steps(batches, total, per_epoch, first):
        stopped = signals.number
        is_looked_at = done % per_epoch == 0 or done % CHECK_EVERY == 0
        if not stopped and not is_looked_at:
            continue
        training.flush_metrics()
        minutes = (time.monotonic() - checkpoint.saved) / 60
        is_due = done < total and minutes >= checkpoint.minutes
        if stopped or is_due:
            checkpoint.save(training)
        if stopped:
            saved = f"Step {done} is saved as {checkpoint.path}: rerun to resume."
            raise Terminated(stopped, saved)
    if not all(each.isfinite().all() for each in training.clip.model.parameters()):
        raise diverged("The last step left weights that are not finite")


def _write(
    setup: Setup,
    training: Training,
    metadata: TrainingMetadata,
    model_output: str,
    history_output: str,
) -> None:
    if _was_trained(model_output, history_output, metadata.identity):
        return
    inputs = setup.inputs
    templates = replace(
        setup.settings.class_templates, written=inputs.written_names
    )
    setup.clip.model.eval()
    classifier = Classifier.of(training.objective.classifier())
    with replacing(model_output) as folder:
        clips.save_finetuned(
            setup.clip, classifier, inputs.classnames, templates, folder
        )
    history = pa.Table.from_pylist(training.history, tables.HISTORY)
    tables.write(history_output, history, tables.HISTORY, metadata)


def _was_trained(model_output: str, history_output: str, identity: str) -> bool:
    """Return whether another process wrote this model. UserError: there is another in its place.

    Jobs of a killed Snakemake go on beside those of a rerun, and the first wins.
    """
    is_written = Path(model_output).is_dir() and Path(history_output).is_file()
    if (
        is_written
        and tables.read_metadata(history_output, TrainingMetadata).identity
        == identity
    ):
        log.info("Another process of this training wrote %s.", model_output)
        return True
    new_folder(model_output)
    return False


def _flags(settings: FinetuneSettings, training: Training) -> list[str]:
    """Return the keys of `core.tables.FLAGS` that apply to a run."""
    flags = [*settings.flags]
    last = training.history[-1]["epoch"]
    agreement = fmean(
        row["agreement"] for row in training.history if row["epoch"] == last
    )
    predicted = int(training.predicted.sum())
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
