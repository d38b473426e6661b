"""FLYP (Goyal et al. 2023): images against the texts of their classes."""

import torch

from latteclip.train.objectives import base


class Flyp(base.Objective):
    """L(v, f_txt(T(y))) on given labels. Scores are by the class texts at the epoch's start."""

    STATE = ("epoch_classifier",)

    def start_epoch(self) -> None:
        self.epoch_classifier = self.classifier()  # [C, D]

    def loss(self, batch: base.TrainingBatch) -> base.Outcome:
        # [B, D]
        targets = self.texts.tokenized.encode(
            self.texts.classes[batch.pseudo_labels]
        )
        loss = base.contrastive(batch.features, targets, batch.scale)
        scores: torch.Tensor = batch.features.detach() @ self.epoch_classifier.T
        return loss, scores  # scores [B, C]


make = Flyp
