"""What a method optimises: its text targets, its losses and its classifier.

The training loop knows only `Objective`. Letters: N training images, B batch, C classes,
D embedding width, G group descriptions.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from latteclip.core.errors import UserError
from latteclip.train.texts import TextBank

# Modules of this folder, each with a function `maker`; a new objective is an entry here. An edit of
# such a module reruns the trainings under its objective alone. With "supervised" added to a name,
# the same objective is given the true labels.
OBJECTIVES = ("flyp", "flyp_supervised", "latteclip")


@dataclass(frozen=True)
class TrainingTexts:
    """Ids in a `TextBank` of every text that a method may use."""

    classes: torch.Tensor  # [C] class descriptions T(c)
    images: torch.Tensor  # [N] image descriptions; empty where the method does without
    groups: torch.Tensor  # [G] group descriptions; empty where the method does without
    group_labels: torch.Tensor  # [G] the pseudo-label that each group was drawn from
    # [C, D] L2-normalised prototypes to start from, where those are not the class descriptions.
    prototypes: torch.Tensor | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """The images of one step."""

    index: torch.Tensor  # [B] rows of the training images, on the CPU
    pseudo_labels: torch.Tensor  # [B] frozen labels: zero-shot ones by default, on the CPU
    features: torch.Tensor  # [B, D] image features, with gradient
    scale: torch.Tensor  # exp(logit_scale), with gradient


@dataclass(frozen=True)
class StepOutcome:
    """What an objective says about a batch."""

    loss: torch.Tensor  # the scalar to minimise
    scores: torch.Tensor  # [B, C] cosines to the classifier that the objective has at hand
    logs: dict[str, torch.Tensor]  # detached scalars for the history


class Objective(Protocol):
    """One method."""

    def loss(self, batch: TrainingBatch) -> StepOutcome:
        """The loss of a batch, and what can be observed of it."""

    def after_step(self) -> None:
        """Called once after each optimiser step."""

    def start_epoch(self) -> None:
        """Called before the first step of each epoch."""

    def state(self) -> dict[str, torch.Tensor]:
        """What outlives a step besides the model, by name."""

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state`."""

    def classifier(self) -> torch.Tensor:
        """The classifier [C, D] of the model as it is now."""


# Makes an objective from the texts of a training and its seed.
Maker = Callable[[TextBank, TrainingTexts, int], Objective]


@torch.no_grad()
def text_classifier(bank: TextBank, classes: torch.Tensor) -> torch.Tensor:
    """f_txt(T(c)) of the current model, [C, D]."""
    return bank.encode(classes)


def choose(name: str, switches: Mapping[str, Any]) -> Maker:
    """What makes the objective of that name, its switches checked.

    Raises:
        UserError: there is no such objective, or its switches do not fit.
    """
    if name not in OBJECTIVES:
        raise UserError(f"Objective {name!r} is none of {', '.join(OBJECTIVES)}.")
    own = name.removesuffix("_supervised")
    module = importlib.import_module(f"latteclip.train.objectives.{own}")
    maker: Maker = module.maker(switches)
    return maker
