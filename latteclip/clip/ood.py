"""Detect images of none of the classes with the pretrained CLIP, without labels.

Not in the paper. An image's score is its cosine distance from the nearest class text, after the
mean feature of the training images is subtracted. The mean removes what all images of a dataset
share.

Letters: N images, C classes, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import ROWS, Classifier, load_classifier, save_classifier
from latteclip.clip.feature_memmap import Features, parts
from latteclip.core.errors import DELETE_AND_RERUN, UserError


@dataclass(frozen=True)
class UnknownDetector:
    """Scores images by their features under the pretrained CLIP.

    An image is unknown if its score, from 0 to 2, is above the threshold.
    """

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
        """Fit a detector that calls a share of the training images unknown. Return all scores too.

        Args:
            features: [N, D].
            training: [N] which images are for training, at least one.
            texts: [C, D] class embeddings.
            share: of the images, from 0.
            described: as of the class embeddings.
        """
        every = parts(len(features), ROWS)
        sums = [features[rows][training[rows]].double().sum(dim=0) for rows in every]
        mean = (torch.stack(sums).sum(dim=0) / training.sum()).float()
        scores = cls(texts, mean, 0.0, described).scores(features)
        line = threshold(scores[training], int(share * int(training.sum())))
        return cls(texts, mean, line, described), scores

    def scores(self, features: Features) -> torch.Tensor:
        """Return scores [N] of L2-normalised image features [N, D]."""
        nearest = [self._nearest(features[rows]) for rows in parts(len(features), ROWS)]
        return 1 - torch.cat(nearest)

    def _nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Return the cosine [n] of features [n, D] with the nearest text."""
        return (F.normalize(features - self.mean, dim=1) @ self.texts.T).amax(dim=1)

    def save(self, path: str | Path) -> None:
        """Write the detector, whole or not at all."""
        learned = {"mean": self.mean.tolist(), "threshold": self.threshold}
        save_classifier(path, Classifier.of(self.texts), {**self.described, **learned})


def threshold(scores: torch.Tensor, n: int) -> float:
    """Return the score above which n of the scores [N] lie, or fewer if some are equal."""
    return scores.sort().values[max(0, len(scores) - 1 - n)].item()


def load_detector(path: str | Path, classnames: Sequence[str]) -> UnknownDetector:
    """Load the detector of these classes that `UnknownDetector.save` wrote.

    Raises:
        UserError: there is no such file, it is not a detector, or it is of other classes.
    """
    classifier, described = load_classifier(path, classnames=list(classnames))
    try:
        mean, line = torch.tensor(described.pop("mean")), float(described.pop("threshold"))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is not a detector of unknown images; {DELETE_AND_RERUN}."
        ) from None
    return UnknownDetector(classifier.weights, mean, line, described)
