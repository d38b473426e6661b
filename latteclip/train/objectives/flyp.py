"""FLYP (Goyal et al. 2023): images against the texts of their classes.

Letters: B batch, C classes, D embedding width.
"""

from collections.abc import Mapping
from typing import Any

import torch

from latteclip.train.objectives import base
from latteclip.train.objectives.base import TokenizedTexts


def maker(switches: Mapping[str, Any]) -> base.Maker:
    """Return FLYP, which has no switches. A method that is `like` another may inherit some."""
    return lambda texts, ids, seed: Flyp(texts, ids)


class Flyp:
    """FLYP (Goyal et al. 2023) on given labels: L(v, f_txt(T(y))).

    Its scores are by the class texts at the epoch's start.
    """

    def __init__(self, texts: TokenizedTexts, ids: base.TrainingTexts) -> None:
        self.texts, self.ids = texts, ids
        self.start_epoch()

    def loss(self, batch: base.TrainingBatch) -> base.StepOutcome:
        targets = self.texts.encode(self.ids.classes[batch.pseudo_labels])  # [B, D]
        loss = base.contrastive(batch.features, targets, batch.scale)
        scores = batch.features.detach() @ self.epoch_classifier.T
        return base.StepOutcome(loss, scores, {"loss_zero_shot": loss.detach()})

    def after_step(self) -> None:
        """Do nothing: FLYP has no state besides the model."""

    def start_epoch(self) -> None:
        self.epoch_classifier = self.classifier()  # [C, D]

    def state(self) -> dict[str, torch.Tensor]:
        return {"epoch_classifier": self.epoch_classifier}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.epoch_classifier = state["epoch_classifier"].to(self.epoch_classifier.device)

    def classifier(self) -> torch.Tensor:
        return base.text_classifier(self.texts, self.ids.classes)
