"""The state of a training, and its one step.

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
from latteclip.train.checkpoints import Checkpoint
from latteclip.train.objectives.base import Objective, TrainingBatch
from latteclip.train.settings import FROZEN, Finetune

MAX_LOGIT_SCALE = math.log(100)
MIN_CLASSES = 0.5  # share of the classes that a sound model predicts
MIN_AGREEMENT = 0.25  # with the pseudo-labels; chance is 1 / C


def adamw(model: torch.nn.Module, settings: Finetune) -> torch.optim.AdamW:
    """The optimiser of a model; its learning rate is set at each step.

    `fused`: a third of the time on a CPU, and under a gradient scaler no wait for the GPU.
    """
    groups = parameter_groups(model, settings.weight_decay)
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, fused=True)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices, none on gains, biases, norms and logit_scale."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def training_mode(model: torch.nn.Module, batch_norm: str) -> None:
    """Put a model into training mode; BatchNorm that is "frozen" stays in evaluation mode.

    Its gains and biases are trained all the same. Its statistics are those of pretraining: running
    ones of small, few or odd batches would change the features whatever the learning rate is.
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
    ending: int = 0  # signal that any process received during the last step; 0: none

    def __post_init__(self) -> None:
        fp16 = self.clip.device.type == "cuda" and self.clip.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.clip.device.type, enabled=fp16)
        # A pretrained scale may lie above the bound: SigLIP's does.
        self.max_logit_scale = max(MAX_LOGIT_SCALE, self.logit_scale.item())
        self._recent: list[dict[str, Any]] = []  # rows whose tensors were not looked at yet

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
        """One optimiser step; returns detached scalars for the history.

        Nothing here waits for a GPU's results, which would leave it idle until it gets new work.

        Args:
            index: [B] rows of the training images.
            labels: [B] class that each is taken for.
            batch: [b, 3, H, W], the images that fall to this process.
            rate: learning rate.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        training_mode(self.clip.model, self.batch_norm)
        scale = self.logit_scale.exp()
        own = devices.send(labels, self.clip.device)  # [B]
        features = parallel.gather(encode.encode_images(self.clip, batch), len(index))  # [B, D]
        outcome = self.objective.loss(TrainingBatch(index, labels, features, scale))
        self.adamw.zero_grad()
        self.scaler.scale(outcome.loss).backward()
        trained = (p for group in self.adamw.param_groups for p in group["params"])
        self.ending = parallel.average_gradients(trained, self.signals.number)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.objective.after_step()
        with torch.no_grad():
            self.logit_scale.clamp_(0, self.max_logit_scale)
            predicted = outcome.scores.argmax(dim=1)  # [B]
            self.predicted.index_add_(0, predicted, torch.ones_like(predicted))
            return {
                "loss": outcome.loss.detach(),
                "agreement": (predicted == own).float().mean(),
                **spread(outcome.scores, scale),
                "logit_scale": self.logit_scale.clone(),
                **outcome.logs,
            }

    def record(self, row: dict[str, Any]) -> None:
        """Keep a row for the history; its tensors stay on their device until `settle`."""
        self._recent.append(row)

    def settle(self, timings: Callable[[], dict[str, float]]) -> None:
        """Make numbers of the rows recorded since the last call: the one place that waits.

        Args:
            timings: columns that all of these rows get, asked for when their steps are done.

        Raises:
            UserError: a loss among them is not finite.
        """
        scalars = [
            (row, name)
            for row in self._recent
            for name, value in row.items()
            if isinstance(value, torch.Tensor)
        ]
        values = torch.stack([row[name].double() for row, name in scalars]).tolist()
        for (row, name), value in zip(scalars, values, strict=True):
            row[name] = value
        shared = timings()
        check_finite(self._recent)
        self.history += [row | shared for row in self._recent]
        self._recent = []

    def checkpoint(self, steps: int, identity: dict[str, Any]) -> Checkpoint:
        """The state after so many steps, random generators included."""
        tensors = {f"model.{name}": value for name, value in self.clip.model.state_dict().items()}
        for number, state in self.adamw.state_dict()["state"].items():
            tensors |= {f"adamw.{number}.{name}": value for name, value in state.items()}
        tensors |= {f"objective.{name}": value for name, value in self.objective.state().items()}
        tensors |= {"predicted": self.predicted, "random.torch": torch.get_rng_state()}
        if self.clip.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        kind, words, *rest = np.random.get_state(legacy=True)
        values = {
            "identity": identity,
            "history": self.history,
            "scaler": self.scaler.state_dict(),
            "random.numpy": [kind, words.tolist(), *rest],  # type: ignore[union-attr]
            "random.python": random.getstate(),
        }
        return Checkpoint(steps, tensors, values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        tensors, values = checkpoint.tensors, checkpoint.values
        self.clip.model.load_state_dict(_named(tensors, "model."))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in _named(tensors, "adamw.").items():
            number, name = key.split(".")
            state.setdefault(int(number), {})[name] = tensor
        self.adamw.load_state_dict({**self.adamw.state_dict(), "state": state})
        self.objective.restore(_named(tensors, "objective."))
        self.scaler.load_state_dict(values["scaler"])
        self.predicted = tensors["predicted"].to(self.clip.device)
        self.history = values["history"]
        torch.set_rng_state(tensors["random.torch"])
        if self.clip.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        np.random.set_state(tuple(values["random.numpy"]))
        version, internal, gauss = values["random.python"]
        random.setstate((version, tuple(internal), gauss))


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def check_finite(rows: list[dict[str, Any]]) -> None:
    """Raise UserError at the first row of the history whose loss is not finite."""
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"The loss became {row['loss']} at step {row['step']} (epoch {row['epoch'] + 1}); "
                "nothing was written: lower finetune.lr or raise finetune.warmup_steps."
            )


def spread(scores: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """How sure predictions are of an image, and how evenly they fall on the classes.

    Args:
        scores: [B, C] cosines.
        scale: exp(logit_scale), a scalar.

    Returns:
        entropy: mean over images of the entropy of softmax(scale * scores), in nats.
        class_balance: entropy of the mean prediction over log C: 1 where every class is predicted
            as often as the others, 0 where all fall on one class.
    """
    predicted = (scale * scores).softmax(dim=1)  # [B, C]
    return {
        "entropy": _entropy(predicted).mean(),
        "class_balance": _entropy(predicted.mean(dim=0)) / math.log(scores.shape[1]),
    }


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in nats."""
    entropies: torch.Tensor = torch.special.entr(probabilities)
    return entropies.sum(dim=-1)


def collapse(counts: torch.Tensor, agreement: float) -> str | None:
    """What looks collapsed, in words, or None.

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
