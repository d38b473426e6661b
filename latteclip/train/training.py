"""A training: its set-up, its state and its optimiser step.

Compiling, checkpointing and micro-batches keep features and gradients the same up to rounding.
Letters: N training images, B batch, C classes, D embedding width, T texts, L tokens.
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.encode import text_tower
from latteclip.clip.model import Clip
from latteclip.core import devices
from latteclip.core.errors import UserError, first_line
from latteclip.core.signals import Signals
from latteclip.train import data, parallel
from latteclip.train.images import Augmentation, TrainingImages, open_cache
from latteclip.train.objectives.base import (
    Objective,
    TokenizedTexts,
    TrainingBatch,
    make_objective,
)
from latteclip.train.settings import FROZEN, Compute, Finetune, FinetuneSettings, Recipe

log = logging.getLogger(__name__)
MAX_LOGIT_SCALE = math.log(100)
MIN_CLASSES = 0.5  # share of the classes that a sound model predicts
MIN_AGREEMENT = 0.25  # with the pseudo-labels; chance is 1 / C
MOMENTS = 2  # of AdamW, each as large as the weights
KINDS_OF_TEXT = 4  # that an objective asks for at most, per image of a batch
Keys = list[tuple[int, int]]  # of a batch, see `data.schedule`


class DivergedError(UserError):
    """The loss or a weight of a training is not finite."""


# --- set-up ---------------------------------------------------------------------------------------


@dataclass
class Setup:
    """The model and the data of a training."""

    clip: Clip
    texts: TokenizedTexts
    inputs: data.TrainingData
    settings: FinetuneSettings
    threads: int

    @classmethod
    def load(
        cls, files: data.TrainingFiles, settings: FinetuneSettings, device: str, threads: int
    ) -> Self:
        """Load the pretrained model and the data.

        Raises:
            UserError: an input is missing or does not fit the others.
        """
        picked = devices.pick(device, threads)
        clip = clips.load(settings.model, settings.pretrained, picked, settings.precision)
        if settings.finetune.batch_norm != FROZEN:
            refuse_moving_statistics(clip, settings.compute)
        texts = TokenizedTexts(clip)
        template = settings.words.template
        inputs = data.read(files, template, settings.labels, texts, settings.fold)
        return cls(clip, texts, inputs, settings, threads)

    def prepare(self, batch_size: int) -> None:
        """Prepare the model for training on batches of so many images (`prepare_training`)."""
        compute, batch_norm = self.settings.compute, self.settings.finetune.batch_norm
        prepare_training(self.clip, compute, self.texts.tokens, batch_size, batch_norm)

    def training(self, recipe: Recipe, signals: Signals, seed: int) -> "Training":
        """Return a training that begins with the model as it is, after `prepare`."""
        objective = make_objective(
            self.settings.objective, self.texts, self.inputs.texts, self.settings.switches, seed
        )
        return Training(self.clip, objective, len(self.inputs.classnames), recipe, signals)

    def images(self, folder: str, seed: int) -> TrainingImages:
        """Return the training images, cached in memory and on the disk of a folder."""
        transform, gib = Augmentation.of(self.clip), self.settings.compute.cache_gib
        cache = open_cache(self.inputs.sizes, transform.cached_side, gib * 2**30, folder)
        return TrainingImages(self.inputs.paths, transform, seed, cache)

    def batches(
        self, images: TrainingImages, schedule: Iterable[Keys]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the rows [B] of each batch, and this process's share of its images."""
        schedule, ahead = itertools.tee(schedule)
        shares = images.batches(map(parallel.share, ahead), self.clip.device, self.threads)
        for keys, share in zip(schedule, shares, strict=True):
            yield torch.tensor([index for _, index in keys]), share

    @contextlib.contextmanager
    def explaining_memory(self, batch_size: int) -> Iterator[None]:
        """Raise UserError with what to change if the GPU's memory runs out."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            share = -(-batch_size // parallel.size())
            raise _out_of_memory(min(self.clip.micro_batch or share, share)) from error


def prepare_training(
    clip: Clip, compute: Compute, tokens: torch.Tensor, batch_size: int, batch_norm: str = FROZEN
) -> None:
    """Prepare both towers for training.

    - `compile`: torch.compile the towers in place. The names in the state dict stay.
    - `gradient_checkpointing`: the backward pass recomputes activations, block by block.
    - `micro_batch`: encode that many images or texts at once, exactly (Gao et al. 2021, GradCache):
      the loss still compares the whole batch. "auto" takes what fits into a GPU's memory.

    On a GPU, convolutional image towers get the channels-last memory format, in which they are
    faster. On a CPU the backward pass of torch 2.13 writes past its memory in that format.

    Args:
        clip: the model.
        compute: the section of the configuration.
        tokens: [T, L] of all texts of the training.
        batch_size: images of a batch, which all processes share.
        batch_norm: "frozen" or "train", which needs whole batches.

    Raises:
        UserError: the model or the machine cannot do it.
    """
    model: Any = clip.model
    if compute.gradient_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (ValueError, AttributeError, NotImplementedError) as error:
            raise UserError(
                f"compute.gradient_checkpointing does not go with clip.model ({first_line(error)});"
                " set it to false."
            ) from error
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.visual.modules())
    if convolutions > 1 and clip.device.type == "cuda":  # a ViT has one, which cuts the patches
        clip.channels_last = True
        model.visual.to(memory_format=torch.channels_last)
    if compute.micro_batch != "auto":
        clip.micro_batch = compute.micro_batch
    elif on_gpu(clip):
        training_mode(model, FROZEN)  # the trial leaves statistics alone
        is_divisible = batch_norm == FROZEN or not any(batch_norms(model))
        clip.micro_batch = micro_batch(
            clip, tokens, -(-batch_size // parallel.size()), is_divisible
        )
        model.eval()
    if compute.compile:
        _compile(clip)


def on_gpu(clip: Clip) -> bool:
    """Return whether memory may run out: a CPU takes the whole batch."""
    return clip.device.type == "cuda"


def refuse_moving_statistics(clip: Clip, compute: Compute) -> None:
    """Raise UserError if BatchNorm would not see each batch exactly once and whole."""
    is_in_parts = isinstance(compute.micro_batch, int) or parallel.size() > 1
    if (is_in_parts or compute.gradient_checkpointing) and any(batch_norms(clip.model)):
        raise UserError(
            "With finetune.batch_norm train the BatchNorm layers of clip.model must see each batch "
            "once and whole; set compute.micro_batch to null, compute.gradient_checkpointing to "
            f"false and processes.finetune to 1, or finetune.batch_norm to {FROZEN}."
        )


def _compile(clip: Clip) -> None:
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=clip.device))
    except RuntimeError as error:
        raise UserError(
            f"compute.compile: torch.compile does not work on this machine ({first_line(error)}); "
            "install a C++ compiler or set it to false."
        ) from error
    model: Any = clip.model
    model.visual.compile()
    text_tower(model).transformer.compile(dynamic=True)


def micro_batch(
    clip: Clip, tokens: torch.Tensor, images: int, is_divisible: bool = True
) -> int | None:
    """Return how many images or texts of a batch may be encoded at once. None: all of them.

    Tries a step with the whole batch, then with the largest power of two below, and with half of
    that each time the memory runs out. Weights and random generators stay as they are.

    Args:
        clip: the model in training mode.
        tokens: [T, L] of all texts of the training.
        images: this process's share of a batch.
        is_divisible: whether the model may see parts of a batch.

    Raises:
        UserError: not even one image fits, or the whole batch does not and is not divisible.
    """
    size = images
    while not _fits(clip, tokens, images, None if size == images else size):
        if size == 1 or not is_divisible:
            raise _out_of_memory(size)
        size = 1 << ((size - 1).bit_length() - 1)
    if size == images:
        return None
    log.info(
        "Encoding %d images or texts at once (compute.micro_batch: auto): a batch of %d does not "
        "fit into the GPU's memory.",
        size,
        images,
    )
    return size


def _out_of_memory(at_once: int) -> UserError:
    return UserError(
        f"The GPU's memory does not suffice to train on {at_once} images or texts at once; lower "
        "compute.micro_batch (with finetune.batch_norm train: finetune.batch_size), set "
        "compute.gradient_checkpointing to true, take a smaller clip.model, or free the GPU."
    )


def _fits(clip: Clip, tokens: torch.Tensor, images: int, size: int | None) -> bool:
    """Return whether memory suffices for a step that encodes `size` images or texts at once.

    The optimiser's moments, which the first real step allocates, are part of it.
    """
    height, width = np.broadcast_to(clip.model.visual.image_size, 2)  # type: ignore[arg-type, union-attr]
    causal = encode.CausalText.of(clip.model)  # any other tower sees the padding as well
    order = (causal.lengths(tokens) if causal else tokens[:, 0]).argsort()
    chosen = torch.linspace(0, len(order) - 1, min(len(order), KINDS_OF_TEXT * images)).long()
    cuda = [clip.device] if clip.device.type == "cuda" else []
    trained = [each for each in clip.model.parameters() if each.requires_grad]
    before, clip.micro_batch = clip.micro_batch, size
    try:
        with torch.random.fork_rng(devices=cuda):
            moments = [torch.empty_like(each) for each in trained for _ in range(MOMENTS)]
            blank = torch.zeros(images, 3, height, width, device=clip.device)
            features = encode.encode_images(clip, blank).sum()
            (features + encode.encode_texts(clip, tokens[order[chosen]].long()).sum()).backward()
            del moments
    except torch.OutOfMemoryError:
        return False
    finally:
        clip.micro_batch = before
        clip.model.zero_grad()
        if cuda:
            torch.cuda.empty_cache()
    return True


def training_mode(model: torch.nn.Module, batch_norm: str) -> None:
    """Put a model into training mode. BatchNorm that is "frozen" stays in evaluation mode.

    Its gains and biases are trained all the same. Its statistics are those of pretraining: running
    statistics of small batches would change the features at any learning rate.
    """
    model.train()
    if batch_norm == FROZEN:
        for module in batch_norms(model):
            module.eval()


def batch_norms(model: torch.nn.Module) -> Iterator[BatchNorm]:
    """Yield the BatchNorm layers of a model."""
    return (module for module in model.modules() if isinstance(module, BatchNorm))


# --- state and step -------------------------------------------------------------------------------


def adamw(model: torch.nn.Module, settings: Finetune) -> torch.optim.AdamW:
    """Return the optimiser of a model. Each step sets its learning rate.

    `fused` takes a third of the time on a CPU, and does not wait for a GPU under a gradient scaler.
    """
    groups = parameter_groups(model, settings.weight_decay)
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, fused=True)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Apply weight decay to matrices, and none to gains, biases, norms and logit_scale."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class Training:
    """Everything that a step changes."""

    def __init__(
        self, clip: Clip, objective: Objective, n_classes: int, recipe: Recipe, signals: Signals
    ) -> None:
        self.clip, self.objective, self.recipe, self.signals = clip, objective, recipe, signals
        self.adamw = adamw(clip.model, recipe)
        # int64 [C] how often each class was predicted in the epoch so far
        self.predicted = torch.zeros(n_classes, dtype=torch.long, device=clip.device)
        self.history: list[dict[str, Any]] = []  # one row per step, plain numbers
        self.stop_signal = 0  # that any process received during the last step; 0: none
        fp16 = clip.device.type == "cuda" and clip.precision == "fp16"
        self.scaler = torch.amp.GradScaler(clip.device.type, enabled=fp16)
        # A pretrained scale may lie above the bound: SigLIP's does.
        self.max_logit_scale = max(MAX_LOGIT_SCALE, self.logit_scale.item())
        # Rows whose tensors are still on the device, when the first began, and of them all the
        # seconds without a batch, and the images.
        self._pending: list[dict[str, Any]] = []
        self._began, self._waited, self._images = 0.0, 0.0, 0

    @property
    def logit_scale(self) -> torch.Tensor:
        """The logarithm of s, a trained scalar."""
        return self.clip.model.logit_scale  # type: ignore[return-value]

    def steps(
        self,
        batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
        labels: torch.Tensor,
        total: int,
        per_epoch: int,
        first: int = 0,
    ) -> Iterator[int]:
        """Take steps, and yield after each how many are done.

        Args:
            batches: of `Setup.batches`, from the first step on.
            labels: [N] class that each training image is taken for.
            total: steps of the training.
            per_epoch: steps of an epoch.
            first: steps that are done already.
        """
        for step in range(first, total):
            if step % per_epoch == 0:
                self.objective.start_epoch()
                self.predicted = torch.zeros_like(self.predicted)
            began = time.monotonic()
            if not self._pending:
                self._began, self._waited, self._images = began, 0.0, 0
            index, images = next(batches)
            self._waited += time.monotonic() - began
            self._images += len(index)
            rate = self.recipe.rate(step, total)
            logs = self.step(index, labels[index], images, rate)
            self._pending.append({"step": step, "epoch": step // per_epoch, "lr": rate, **logs})
            yield step + 1

    def step(
        self, index: torch.Tensor, labels: torch.Tensor, batch: torch.Tensor, rate: float
    ) -> dict[str, torch.Tensor]:
        """Take one optimiser step and return detached scalars for the history.

        Nothing here waits for a GPU's results, which would leave the GPU idle.

        Args:
            index: [B] rows of the training images.
            labels: [B] class that each is taken for.
            batch: [b, 3, H, W], this process's share of the images.
            rate: learning rate.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        training_mode(self.clip.model, self.recipe.batch_norm)
        scale = self.logit_scale.exp()
        pseudo_labels = devices.send(labels, self.clip.device)  # [B]
        features = parallel.gather(encode.encode_images(self.clip, batch), len(index))  # [B, D]
        outcome = self.objective.loss(TrainingBatch(index, labels, features, scale))
        self.adamw.zero_grad()
        self.scaler.scale(outcome.loss).backward()
        trained = (p for group in self.adamw.param_groups for p in group["params"])
        self.stop_signal = parallel.average_gradients(trained, self.signals.number)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.objective.after_step()
        with torch.no_grad():
            self.logit_scale.clamp_(0, self.max_logit_scale)
            predicted = outcome.scores.argmax(dim=1)  # [B]
            self.predicted.index_add_(0, predicted, torch.ones_like(predicted))
            return {
                "loss": outcome.loss.detach(),
                "agreement": (predicted == pseudo_labels).float().mean(),
                **prediction_entropy(outcome.scores, scale),
                "logit_scale": self.logit_scale.clone(),
                **outcome.logs,
            }

    def flush_metrics(self) -> None:
        """Move the pending rows into the history as numbers. This waits for the device.

        A GPU runs behind the steps that it is given, so only here times are known. All rows get the
        same speed and share of waiting.

        Raises:
            DivergedError: a loss among them is not finite. The rows before it are in the history.
        """
        rows, self._pending = self._pending, []
        scalars = [
            (row, name)
            for row in rows
            for name, value in row.items()
            if isinstance(value, torch.Tensor)
        ]
        values = torch.stack([row[name].double() for row, name in scalars]).tolist()
        for (row, name), value in zip(scalars, values, strict=True):
            row[name] = value
        seconds = time.monotonic() - self._began
        speed = {
            "images_per_second": self._images / seconds,
            "data_wait": self._waited / seconds,
        }
        for row in rows:
            if not math.isfinite(row["loss"]):
                raise DivergedError(
                    f"The loss became {row['loss']} at step {row['step']} "
                    f"(epoch {row['epoch'] + 1}); nothing was written: lower finetune.lr or raise "
                    "finetune.warmup_steps."
                )
            self.history.append(row | speed)

    def state_dict(self) -> dict[str, Any]:
        """Return all state, torch's random generators included."""
        return {
            "model": self.clip.model.state_dict(),
            "adamw": self.adamw.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state(),
            "predicted": self.predicted,
            "history": self.history,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.clip.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the tensors of a `state_dict`, which may lie on the CPU."""
        self.clip.model.load_state_dict(state["model"])
        self.adamw.load_state_dict(state["adamw"])
        self.scaler.load_state_dict(state["scaler"])
        self.objective.restore(state["objective"])
        self.predicted = state["predicted"].to(self.clip.device)
        self.history = state["history"]
        torch.set_rng_state(state["torch"])
        if self.clip.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"])


def prediction_entropy(scores: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return how certain predictions are, and how evenly they are spread over the classes.

    Args:
        scores: [B, C] cosines.
        scale: exp(logit_scale), a scalar.

    Returns:
        entropy: mean over images of the entropy of softmax(scale * scores), in nats.
        class_balance: entropy of the mean prediction over log C: 1 where all classes are predicted
            equally often, 0 where all predictions are one class.
    """
    predicted = (scale * scores).softmax(dim=1)  # [B, C]
    of_images = torch.special.entr(predicted).sum(dim=-1)  # [B]
    of_mean = torch.special.entr(predicted.mean(dim=0)).sum(dim=-1)
    return {"entropy": of_images.mean(), "class_balance": of_mean / math.log(scores.shape[1])}


def collapse(counts: torch.Tensor, agreement: float) -> str | None:
    """Describe how predictions collapsed; None if they did not.

    Args:
        counts: [C] how often each class was predicted in an epoch.
        agreement: share of its images whose prediction is their pseudo-label.
    """
    predicted = int((counts > 0).sum())
    if predicted < MIN_CLASSES * len(counts):
        return f"only {predicted} of {len(counts)} classes are predicted"
    if agreement < MIN_AGREEMENT:
        return f"only {agreement:.0%} of the predictions agree with the pseudo-labels"
    return None
