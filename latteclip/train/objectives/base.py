"""What a method optimises: its text targets, its losses and its classifier.

The training loop knows only `Objective`. Letters: N training images, B batch, C classes,
D embedding width, G group descriptions, T texts, U distinct ones, L tokens.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.train import parallel

# Modules of this folder, each with a function `maker`; a new objective is an entry here. An edit of
# such a module reruns the trainings under its objective alone. With "supervised" added to a name,
# the same objective is given the true labels.
OBJECTIVES = ("flyp", "flyp_supervised", "latteclip")
TEXTS_AT_ONCE = 2**14  # texts tokenised at once


class TextBank:
    """Distinct texts of a dataset and their tokens."""

    def __init__(self, clip: clips.Clip) -> None:
        self.clip = clip
        self._texts = pa.chunked_array([], pa.large_string())  # no limit of 2 GiB
        self._tokens: torch.Tensor | None = None

    def add(self, texts: Sequence[str] | pa.ChunkedArray) -> torch.Tensor:
        """Ids [T] of the texts; the same text always has the same id."""
        if not isinstance(texts, pa.ChunkedArray):
            texts = pa.chunked_array([texts], pa.string())
        texts, self._tokens = texts.cast(pa.large_string()), None
        n_known = len(self._texts)
        # Numbered in the order in which they first come, so that known ones keep their ids.
        both = pa.chunked_array([*self._texts.chunks, *texts.chunks], texts.type)
        encoded = pc.dictionary_encode(both).combine_chunks()
        self._texts = pa.chunked_array([encoded.dictionary])
        return torch.from_numpy(encoded.indices.to_numpy()[n_known:].astype(np.int64))

    @property
    def texts(self) -> tables.Strings:
        """The U distinct texts, in the order of their ids."""
        return tables.Strings(self._texts)

    @property
    def tokens(self) -> torch.Tensor:
        """int32 [U, L] of all texts added so far."""
        if self._tokens is None:
            self._tokens = self._tokenized()
        return self._tokens

    def _tokenized(self) -> torch.Tensor:
        """int32 [U, L], filled in part by part: `cat` would hold all twice."""
        texts, width = self.texts, self.clip.tokenizer([""]).shape[1]
        tokens = torch.empty(len(texts), width, dtype=torch.int32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = self.clip.tokenizer(list(texts[start : start + TEXTS_AT_ONCE]))
            tokens[start : start + len(part)] = part
        return tokens

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """L2-normalised features [*ids.shape, D], with gradient.

        Each distinct text is encoded once, by one of the processes.
        """
        distinct, where = ids.unique(return_inverse=True)
        own = encode.encode_texts(self.clip, self.tokens[parallel.share(distinct)].long())
        return parallel.gather(own, len(distinct))[devices.send(where, self.clip.device)]


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


def contrastive(
    image_features: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """L(v, z): mean of the cross-entropies over rows and columns, the identity as target.

    Args:
        image_features: v [B, D].
        targets: z [B, D], row i belongs to image i.
        scale: exp(logit_scale), a scalar.

    Returns:
        A float32 scalar.
    """
    logits = scale * image_features.float() @ targets.float().T  # [B, B]
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


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
