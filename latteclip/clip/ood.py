"""Detect images of none of the classes with the pretrained CLIP, without labels (not in the paper).

An image's score is its cosine distance from the nearest class text, after the mean feature of the
training images is subtracted. Letters: N images, C classes, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import (
    Classifier,
    Features,
    load_classifier,
    parts,
    save_classifier,
)


@dataclass(frozen=True)
class UnknownDetector:
    """Scores images, from 0 to 2, and calls those above the threshold unknown."""

    texts: torch.Tensor  # [C, D] L2-normalised
    mean: torch.Tensor  # [D]
    threshold: float
    described: Mapping[str, Any]  # includes model and pretrained

    @classmethod
    def learn(
        cls,
        features: Features,
        training: torch.Tensor,
        texts: torch.Tensor,
        share: float,
        described: Mapping[str, Any],
    ) -> tuple[Self, torch.Tensor]:
        """Return a detector that calls a share of the training images unknown, and all scores."""
        every = parts(len(features))
        sums = [features[rows][training[rows]].double().sum(dim=0) for rows in every]
        mean = (torch.stack(sums).sum(dim=0) / training.sum()).float()
        scores = cls(texts, mean, 0.0, described).scores(features)
        line = threshold(scores[training], int(share * int(training.sum())))
        return cls(texts, mean, line, described), scores

    def scores(self, features: Features) -> torch.Tensor:
        """Return scores [N] of L2-normalised image features [N, D]."""
        centred = (features[rows] - self.mean for rows in parts(len(features)))
        nearest = [
            (F.normalize(part, dim=1) @ self.texts.T).amax(dim=1) for part in centred
        ]
        return 1 - torch.cat(nearest)

    def save(self, path: str | Path) -> None:
        """Write the detector, whole or not at all."""
        learned = {"mean": self.mean.tolist(), "threshold": self.threshold}
        save_classifier(path, Classifier.of(self.texts), {**self.described, **learned})


def threshold(scores: torch.Tensor, n: int) -> float:
    """Return the score above which n of the scores [N] lie, or fewer if some are equal."""
    return scores.sort().values[max(0, len(scores) - 1 - n)].item()


def load_detector(path: str | Path, classnames: Sequence[str]) -> UnknownDetector:
    """Load the detector of these classes that `UnknownDetector.save` wrote, or raise UserError."""
    classifier, described = load_classifier(path, classnames=list(classnames))
    mean = torch.tensor(described.pop("mean"))
    line = described.pop("threshold")
    return UnknownDetector(classifier.weights, mean, line, described)
