"""The state of a training, and its optimiser step.

Letters: N training images, B batch, C classes, D embedding width.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.signals import Signals
from latteclip.train import parallel
from latteclip.train.objectives.base import Objective, TrainingBatch
from latteclip.train.settings import FROZEN, Finetune

MAX_LOGIT_SCALE = math.log(100)
MIN_CLASSES = 0.5  # share of the classes that a sound model predicts
MIN_AGREEMENT = 0.25  # with the pseudo-labels; chance is 1 / C


class DivergedError(UserError):
    """The loss or a weight of a training is not finite."""


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


@dataclass
class Training:
    """Everything that a step changes."""

    clip: clips.Clip
    objective: Objective
    adamw: torch.optim.AdamW
    predicted: torch.Tensor  # int64 [C] how often each class was predicted in the epoch so far
    signals: Signals
    batch_norm: str  # "frozen" or "train"
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per step, plain numbers
    stop_signal: int = 0  # that any process received during the last step; 0: none

    def __post_init__(self) -> None:
        fp16 = self.clip.device.type == "cuda" and self.clip.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.clip.device.type, enabled=fp16)
        # A pretrained scale may lie above the bound: SigLIP's does.
        self.max_logit_scale = max(MAX_LOGIT_SCALE, self.logit_scale.item())
        self._pending: list[dict[str, Any]] = []  # rows whose tensors are still on the device

    @property
    def logit_scale(self) -> torch.Tensor:
        """The logarithm of s, a trained scalar."""
        return self.clip.model.logit_scale  # type: ignore[return-value]

    def start_epoch(self) -> None:
        """Call before the first step of each epoch."""
        self.objective.start_epoch()
        self.predicted = torch.zeros_like(self.predicted)

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
        training_mode(self.clip.model, self.batch_norm)
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

    def record(self, row: dict[str, Any]) -> None:
        """Add a row to the history. Its tensors stay on their device until `flush_metrics`."""
        self._pending.append(row)

    def flush_metrics(self, timings: Callable[[], dict[str, float]]) -> None:
        """Move the recorded rows into the history as numbers. This waits for the device.

        Args:
            timings: returns columns that all of these rows get; called when their steps are done.

        Raises:
            DivergedError: a loss among them is not finite. The rows before it are in the history.
        """
        scalars = [
            (row, name)
            for row in self._pending
            for name, value in row.items()
            if isinstance(value, torch.Tensor)
        ]
        values = torch.stack([row[name].double() for row, name in scalars]).tolist()
        for (row, name), value in zip(scalars, values, strict=True):
            row[name] = value
        rows, self._pending, shared = self._pending, [], timings()
        for row in rows:
            if not math.isfinite(row["loss"]):
                raise DivergedError(
                    f"The loss became {row['loss']} at step {row['step']} "
                    f"(epoch {row['epoch'] + 1}); nothing was written: lower finetune.lr or raise "
                    "finetune.warmup_steps."
                )
            self.history.append(row | shared)

    def state_dict(self) -> dict[str, Any]:
        """Return all state, random generators included."""
        kind, words, *rest = np.random.get_state(legacy=True)
        return {
            "model": self.clip.model.state_dict(),
            "adamw": self.adamw.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state(),
            "predicted": self.predicted,
            "history": self.history,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if self.clip.device.type == "cuda" else None,
            "numpy": (kind, words.tolist(), *rest),  # type: ignore[union-attr]
            "python": random.getstate(),
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
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])


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
