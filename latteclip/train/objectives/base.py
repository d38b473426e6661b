"""What every objective has: tokenised texts, batches and the contrastive loss.

Letters: N images, B batch, C classes, D width, G groups, T texts, U distinct texts, L tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import parts


class TokenizedTexts:
    """Distinct texts of a dataset with ids and tokens."""

    def __init__(self, clip: clips.Clip) -> None:
        self.clip = clip
        # Ids of the U distinct texts, in their order.
        self.texts: dict[str, int] = {}

    def add(self, texts: Iterable[str]) -> torch.Tensor:
        """Return the ids [T] of the texts. The same text always has the same id."""
        ids = [self.texts.setdefault(text, len(self.texts)) for text in texts]
        return torch.tensor(ids, dtype=torch.long)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """int32 [U, L] of all texts, of which none is added any more."""
        texts = list(self.texts)
        tokens = [
            self.clip.tokenizer(texts[rows]).int() for rows in parts(len(texts))
        ]
        return torch.cat(tokens)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Return L2-normalised features [*ids.shape, D]. Each distinct text is encoded once."""
        distinct, where = ids.unique(return_inverse=True)
        features = encode.encode_texts(self.clip, self.tokens[distinct].long())
        return features[self.clip.send(where)]


@dataclass(frozen=True)
class TrainingTexts:
    """Ids of every text that a method may use."""

    tokenized: TokenizedTexts
    classes: torch.Tensor  # [C] class descriptions T(c)
    images: torch.Tensor  # [N] image descriptions; empty if the method has none
    groups: torch.Tensor  # [G] group descriptions; empty if the method has none
    # [G] the pseudo-label that each group was drawn from.
    group_labels: torch.Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """The images of a step."""

    index: torch.Tensor  # [B] rows of the training images, on the CPU
    # [B] frozen labels: zero-shot ones by default, on the CPU.
    pseudo_labels: torch.Tensor
    features: torch.Tensor  # [B, D] image features, with gradient
    scale: torch.Tensor  # exp(logit_scale), with gradient


# The loss, a scalar, and cosines [B, C] to the objective's current classifier.
Outcome = tuple[torch.Tensor, torch.Tensor]


class Objective:
    """One method, with its state besides the model."""

    # Attributes with the tensors that change from step to step.
    STATE: tuple[str, ...] = ()

    # Switches and a seed follow the texts, which not every objective has.
    def __init__(self, texts: TrainingTexts, *_: object) -> None:
        self.texts = texts
        self.clip = texts.tokenized.clip

    def loss(self, batch: TrainingBatch) -> Outcome:
        """Return the loss of a batch and its scores."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update state after an optimiser step."""

    def start_epoch(self) -> None:
        """Update state before the first step of an epoch."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the state besides the model, by name."""
        return {name: getattr(self, name) for name in self.STATE}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        for name in self.STATE:
            setattr(self, name, state[name].to(self.clip.device))

    @torch.no_grad()
    def classifier(self) -> torch.Tensor:
        """Return the classifier of the current model: f_txt(T(c)), [C, D]."""
        return self.texts.tokenized.encode(self.texts.classes)


def contrastive(
    image_features: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return CLIP's symmetric contrastive loss, a float32 scalar (Radford et al. 2021, fig. 3)."""
    logits = scale * image_features.float() @ targets.float().T  # [B, B]
    target = torch.arange(len(logits), device=logits.device)
    return (
        F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    ) / 2
