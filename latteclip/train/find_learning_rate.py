"""Find a learning rate without labels (not in the paper): short trainings, m held-out images."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import encode_files
from latteclip.core.errors import ending_in_order
from latteclip.core.files import write_json
from latteclip.train.data import TrainingFiles, schedule
from latteclip.train.settings import (
    FinetuneSettings,
    Recipe,
    auto_warmup_steps,
    recipe_for,
    steps_per_epoch,
)
from latteclip.train.training import Setup, Training

log = logging.getLogger(__name__)
# Rates to try, the first one between what suits ViTs and what suits small convolutional towers.
UPWARDS = (3e-5, 1e-4, 3e-4, 1e-3)
DOWNWARDS = (1e-5, 3e-6, 1e-6)
# FLYP's for ViTs (Goyal et al. 2023), where nothing can be compared.
FALLBACK = 1e-5
# Short trainings, each of 1 / MAX_RUNS of the steps: one more training at most.
MAX_RUNS = 5
HELD_OUT_EVERY = 5  # one image in so many is held out
MAX_HELD_OUT = 2_000  # images
MIN_IMAGES = 10  # fewest images: two of them are held out
SEED = 0  # seed of the choice and the order of the images
FACTORS = torch.logspace(0, 2.5, 51)  # factors of cosines in a softmax


class _Search:
    """What all short trainings share: the model, the images and the order of their keys."""

    def __init__(self, setup: Setup, recipe: Recipe, decoded: str | None) -> None:
        n = len(setup.inputs.paths)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
        m = min(n // HELD_OUT_EVERY, MAX_HELD_OUT)
        held_out = order[:m].tolist()
        self.trained = order[m:].tolist()
        self.setup = setup
        steps = recipe.epochs * steps_per_epoch(n, recipe.batch_size)
        self.total = max(2, steps // MAX_RUNS)
        warmup = auto_warmup_steps(self.total)
        self.recipe = replace(recipe, warmup_steps=warmup)
        self.images = setup.images(SEED, decoded)
        self.labels = setup.inputs.labels[held_out]
        self.held_out = [setup.inputs.paths[row] for row in held_out]
        state = setup.clip.model.state_dict()
        self.pretrained = {
            name: each.cpu().clone() for name, each in state.items()
        }

    def run(self, lr: float) -> torch.Tensor:
        """Train for a few steps, and return `losses`."""
        self.setup.clip.model.load_state_dict(self.pretrained)
        total = self.total
        torch.manual_seed(SEED)  # all rates have the same draws
        training = self.setup.training(replace(self.recipe, lr=lr), SEED)
        keys = schedule(self.trained, self.recipe.batch_size, total, SEED)
        batches = self.setup.batches(self.images, keys)
        for _ in training.steps(batches, total, total, unit=f"steps at {lr:g}"):
            pass
        losses = self.losses(training)
        log.info(
            "Learning rate %g: loss %.4f of held-out images.", lr, losses.mean()
        )
        return losses

    @torch.no_grad()
    def losses(self, training: Training) -> torch.Tensor:
        """Return squared errors [m] of the held-out images' probabilities, at the best factor.

        They are infinite if the training diverged.
        """
        clip = self.setup.clip
        clip.model.eval()
        classifier = Classifier.of(training.objective.classifier())
        features = encode_files(clip, self.held_out, self.setup.threads)
        scores = classifier.scores(features[:])  # [m, C]
        labels = F.one_hot(self.labels, scores.shape[1])
        shares = (FACTORS[:, None, None] * scores).softmax(2)  # [factors, m, C]
        errors = (shares - labels).square().sum(2).nan_to_num(math.inf)
        return errors[errors.mean(1).argmin()]


def find_learning_rate(
    files: TrainingFiles,
    settings: FinetuneSettings,
    output: str,
    decoded: str | None = None,
    *,
    device: str,
    threads: int,
) -> None:
    """Compare learning rates and write the best one as JSON.

    Each rate trains the pretrained model for a fifth of the steps on four fifths of the images. The
    Brier score of the held-out images' pseudo-labels, at the best temperature, compares the rates:
    unlike the likelihood, it tolerates wrong pseudo-labels. Since the whole training lowers the
    rate step by step, the highest that is not clearly worse than the best is taken, or the lowest
    if none is better than no training. No label is read.
    """
    with ending_in_order(
        "Nothing was found yet: a rerun starts from the beginning."
    ):
        setup = Setup(files, settings, device, threads)
        n = len(setup.inputs.paths)
        recipe = recipe_for(settings.method.finetune, n, FALLBACK)
        if n < MIN_IMAGES:
            log.warning("%d images are too few to compare learning rates.", n)
            write_json(output, {"lr": FALLBACK})
            return
        search = _Search(setup, recipe, decoded)
        before = search.losses(setup.training(recipe, SEED)).mean()
        losses = climb(search.run)
        is_better = _best(losses).mean() < before
        lr = chosen(losses) if is_better else min(losses)
        write_json(output, {"lr": lr})
        log.info("Learning rate %g.", lr)


def climb(run: Callable[[float], torch.Tensor]) -> dict[float, torch.Tensor]:
    """Return the losses [m] of MAX_RUNS rates at most, in the order in which they were tried.

    Upwards until a rate is worse, then downwards if the first higher one was.
    """
    losses: dict[float, torch.Tensor] = {}
    for lr in UPWARDS:
        losses[lr] = run(lr)
        if is_worse(losses[lr], _best(losses)):
            break
    if len(losses) > 2:
        return losses
    for lr in DOWNWARDS:
        losses[lr] = run(lr)
        if _best(losses) is not losses[lr]:
            break
    return losses


def chosen(losses: Mapping[float, torch.Tensor]) -> float:
    """Return the highest rate that is not worse than the best."""
    best = _best(losses)
    return max(lr for lr in losses if not is_worse(losses[lr], best))


def _best(losses: Mapping[float, torch.Tensor]) -> torch.Tensor:
    return min(losses.values(), key=torch.Tensor.mean)


def is_worse(losses: torch.Tensor, others: torch.Tensor) -> bool:
    """Return whether losses [m] are infinite, or higher by more than a standard error."""
    differences = losses - others
    error = differences.std() / math.sqrt(len(differences))
    return not losses.isfinite().all() or bool(differences.mean() > error)
