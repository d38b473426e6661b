"""FLYP (Goyal et al. 2023): images against the texts of their classes.

Letters: B batch, C classes, D embedding width.
"""

from collections.abc import Mapping
from typing import Any

import torch

from latteclip.train.objectives import base
from latteclip.train.objectives.base import TextBank


def maker(switches: Mapping[str, Any]) -> base.Maker:
    """FLYP has no switches; a method that is `like` another one may inherit some."""
    return lambda bank, texts, seed: Flyp(bank, texts)


class Flyp:
    """FLYP (Goyal et al. 2023) on given labels: L(v, f_txt(T(y))).

    Its scores are those of the class texts at the epoch's start.
    """

    def __init__(self, bank: TextBank, texts: base.TrainingTexts) -> None:
        self.bank, self.texts = bank, texts
        self.start_epoch()

    def loss(self, batch: base.TrainingBatch) -> base.StepOutcome:
        targets = self.bank.encode(self.texts.classes[batch.pseudo_labels])  # [B, D]
        loss = base.contrastive(batch.features, targets, batch.scale)
        scores = batch.features.detach() @ self.epoch_classifier.T
        return base.StepOutcome(loss, scores, {"loss_zero_shot": loss.detach()})

    def after_step(self) -> None:
        """Nothing is learned besides the model."""

    def start_epoch(self) -> None:
        self.epoch_classifier = self.classifier()  # [C, D]

    def state(self) -> dict[str, torch.Tensor]:
        return {"epoch_classifier": self.epoch_classifier}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.epoch_classifier = state["epoch_classifier"].to(self.epoch_classifier.device)

    def classifier(self) -> torch.Tensor:
        return base.text_classifier(self.bank, self.texts.classes)
