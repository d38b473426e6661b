"""Find a learning rate without labels, by short trainings and held-out images.

Not in the paper. Letters: n images that are trained on, m held-out images, C classes.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import encode_files
from latteclip.core.files import write_json
from latteclip.core.signals import Signals, ending_in_order
from latteclip.core.steps import auto_warmup_steps
from latteclip.core.terminal import Progress
from latteclip.train.data import TrainingFiles, schedule
from latteclip.train.images import TrainingImages
from latteclip.train.settings import FinetuneSettings, Recipe
from latteclip.train.training import DivergedError, Setup, Training, prepare_training

log = logging.getLogger(__name__)
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
FIRST = 3e-5  # of them, between what suits ViTs and what suits small convolutional towers
FALLBACK = 1e-5  # FLYP's for ViTs (Goyal et al. 2023), where nothing can be compared
MAX_RUNS = 5  # short trainings, each of 1 / MAX_RUNS of the steps: one more training at most
HELD_OUT_EVERY = 5  # one image in so many is held out
MAX_HELD_OUT = 2_000  # images
MIN_IMAGES = 10  # of which two are held out
SEED = 0  # of the choice and the order of the images
FACTORS = torch.logspace(0, 2.5, 51)  # of cosines in a softmax


class ShortRun(NamedTuple):
    """A short training and its losses on the held-out images."""

    lr: float
    losses: torch.Tensor  # [m] squared errors of probabilities; infinite if it diverged

    @property
    def loss(self) -> float:
        """The Brier score, the mean of the losses."""
        return self.losses.mean().item()

    def is_worse(self, other: "ShortRun") -> bool:
        """Return whether the loss is higher by more than a standard error over the images."""
        differences = self.losses - other.losses
        if not math.isfinite(self.loss):
            return True
        error = differences.std().item() / math.sqrt(len(differences))
        return differences.mean().item() > error


@dataclass(frozen=True)
class _Search:
    """What all short trainings share."""

    setup: Setup
    recipe: Recipe
    images: TrainingImages
    trained: torch.Tensor  # [n] images that are trained on
    held_out: torch.Tensor  # [m] images that the rates are compared on
    pretrained: dict[str, torch.Tensor]  # state of the model
    signals: Signals

    def run(self, lr: float) -> ShortRun:
        """Train for a few steps, and return the losses on the held-out images."""
        self.setup.clip.model.load_state_dict(self.pretrained)
        recipe, n, inputs = self.recipe, len(self.trained), self.setup.inputs
        total = max(2, recipe.epochs * recipe.steps_per_epoch(len(inputs.paths)) // MAX_RUNS)
        training = self.training(replace(recipe, lr=lr, warmup_steps=auto_warmup_steps(total)))
        keys = (
            [(number, int(self.trained[index])) for number, index in batch]
            for batch in schedule(n, recipe.batch_size, total, SEED)
        )
        batches = self.setup.batches(self.images, keys)
        progress = Progress(total, f"steps at {lr:g}")
        for _ in training.steps(batches, inputs.labels, total, per_epoch=total):
            progress.add(1)
        try:
            training.flush_metrics()
            run = ShortRun(lr, self.losses(training))
        except DivergedError:
            run = ShortRun(lr, torch.full((len(self.held_out),), math.inf))
        log.info("Learning rate %g: loss %.4f of held-out images.", lr, run.loss)
        return run

    def training(self, recipe: Recipe) -> Training:
        """Return a training of the model as it is, always with the same random draws."""
        torch.manual_seed(SEED)
        return self.setup.training(recipe, self.signals, SEED)

    def losses(self, training: Training) -> torch.Tensor:
        """Return squared errors [m] of the held-out images' probabilities, at the best factor."""
        clip, inputs = self.setup.clip, self.setup.inputs
        clip.model.eval()
        classifier = Classifier.of(training.objective.classifier())
        paths = [inputs.paths[row] for row in self.held_out.tolist()]
        features = encode_files(clip, paths, self.recipe.batch_size, self.setup.threads)
        scores = classifier.scores(features[slice(None)])  # [m, C]
        labels = F.one_hot(inputs.labels[self.held_out], scores.shape[1])
        errors: list[torch.Tensor] = [
            ((factor * scores).softmax(1) - labels).square().sum(1) for factor in FACTORS
        ]
        return min(errors, key=lambda each: each.nan_to_num(math.inf).mean().item())


def find_learning_rate(
    files: TrainingFiles, settings: FinetuneSettings, output: str, *, device: str, threads: int
) -> None:
    """Compare learning rates and write the best one, with all that was compared, as JSON.

    Each rate trains the pretrained model for a fifth of the steps on four fifths of the images. The
    Brier score of the held-out images' pseudo-labels, at the best temperature, compares the rates:
    unlike the likelihood, it tolerates wrong pseudo-labels. The highest rate that is not worse than
    the best by more than a standard error is taken, since the whole training lowers it step by
    step. The search takes no more steps than one training. No label is read.
    """
    with ending_in_order("Nothing was found yet: a rerun starts from the beginning.") as signals:
        setup = Setup.load(files, settings, device, threads)
        n = len(setup.inputs.paths)
        recipe = settings.finetune.recipe(n, FALLBACK)
        if n < MIN_IMAGES:
            why = f"{n} images are too few to compare rates"
            write_json(output, {"lr": FALLBACK, "reason": why, "pretrained_loss": None, "runs": []})
            return
        order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
        m = min(n // HELD_OUT_EVERY, MAX_HELD_OUT)
        tokens, size = setup.texts.tokens, min(recipe.batch_size, n - m)
        prepare_training(setup.clip, settings.compute, recipe.batch_norm, tokens, size)
        images = setup.images(str(Path(output).parent), SEED)
        state = setup.clip.model.state_dict()
        pretrained = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        search = _Search(setup, recipe, images, order[m:], order[:m], pretrained, signals)
        before = ShortRun(0.0, search.losses(search.training(recipe)))
        runs = climb(search.run)
        if _best(runs).loss < before.loss:
            lr, why = chosen(runs).lr, "the highest that is not clearly worse than the best"
        else:
            lr, why = min(each.lr for each in runs), "no rate was better than no training"
        losses = {run.lr: run.loss if math.isfinite(run.loss) else None for run in runs}
        tried = [{"lr": rate, "loss": loss} for rate, loss in losses.items()]
        found = {"lr": lr, "reason": why, "pretrained_loss": before.loss, "runs": tried}
        write_json(output, found)
        log.info("Learning rate %g: %s.", lr, why)


def climb(run: Callable[[float], ShortRun]) -> list[ShortRun]:
    """Try MAX_RUNS rates from FIRST upwards until one is worse, then downwards if the first was."""
    runs = [run(FIRST)]
    place = RATES.index(FIRST)
    for lr in RATES[place + 1 :]:
        runs.append(run(lr))
        if runs[-1].is_worse(_best(runs)):
            break
    if len(runs) > 2:
        return runs
    for lr in RATES[:place][::-1]:
        if len(runs) == MAX_RUNS:
            break
        best = _best(runs)
        runs.append(run(lr))
        if runs[-1].loss >= best.loss:
            break
    return runs


def chosen(runs: Sequence[ShortRun]) -> ShortRun:
    """Return the run of the highest rate that is not worse than the best."""
    best = _best(runs)
    good = [run for run in runs if not run.is_worse(best)]
    return max(good, key=lambda run: run.lr, default=best)


def _best(runs: Sequence[ShortRun]) -> ShortRun:
    return min(runs, key=lambda one: one.loss)
