"""Images that belong to none of the classes, by the pretrained CLIP and without labels: ours.

An image's score is its cosine distance from the nearest class text, with the mean feature of the
training images taken off the image. What all images of a dataset share, which CLIP may find nearer
to one text than to another, then counts for no class.

Letters: N images, C classes, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import ROWS, Classifier, load_classifier, save_classifier
from latteclip.clip.feature_memmap import Features, parts
from latteclip.core.errors import DELETE_AND_RERUN, UserError
from latteclip.core.settings import from_values


@dataclass(frozen=True)
class UnknownDetector:
    """Scores of images from their features under the pretrained CLIP, and where to draw the line.

    An image is unknown where its score, from 0 to 2, is above the threshold.
    """

    texts: torch.Tensor  # [C, D] L2-normalised
    mean: torch.Tensor  # [D]
    threshold: float
    described: Mapping[str, Any]  # model and pretrained among it

    @classmethod
    def learn(
        cls,
        features: Features,
        training: torch.Tensor,
        texts: torch.Tensor,
        share: float,
        described: Mapping[str, Any],
    ) -> tuple[Self, torch.Tensor]:
        """The detector that calls a share of the training images unknown, and all scores [N].

        Args:
            features: [N, D].
            training: [N] which of the images are for training, at least one.
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
        """[N] of L2-normalised image features [N, D]."""
        nearest = [self._nearest(features[rows]) for rows in parts(len(features), ROWS)]
        return 1 - torch.cat(nearest)

    def _nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Cosine [n] of features [n, D] with the nearest text."""
        return (F.normalize(features - self.mean, dim=1) @ self.texts.T).amax(dim=1)

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all."""
        own = {"mean": self.mean.tolist(), "threshold": self.threshold}
        save_classifier(path, Classifier.of(self.texts), {**self.described, **own})


def threshold(scores: torch.Tensor, n: int) -> float:
    """The score above which n of the scores [N] lie, fewer where some are equal or N is n."""
    return scores.sort().values[max(0, len(scores) - 1 - n)].item()


@dataclass(frozen=True)
class Learned:
    """What a detector learned, and of which CLIP, as its file's description has it."""

    mean: list[float]  # D
    threshold: float
    model: str
    pretrained: str | None


def load_detector(path: str | Path, classnames: Sequence[str]) -> UnknownDetector:
    """The detector of these classes that `UnknownDetector.save` wrote.

    Raises:
        UserError: there is no such file, it holds something else, or it is of other classes.
    """
    classifier, described = load_classifier(path, classnames=list(classnames))
    own = {field.name: described.get(field.name) for field in fields(Learned)}
    try:
        learned = from_values(Learned, own)
    except UserError as error:
        raise UserError(
            f"{path} does not tell unknown images ({error}); {DELETE_AND_RERUN}."
        ) from None
    mean = torch.tensor([*learned.mean, learned.threshold])
    if len(learned.mean) != classifier.weights.shape[1] or not mean.isfinite().all():
        raise UserError(
            f"{path} has a mean of another width than its texts, or numbers that are not finite; "
            f"{DELETE_AND_RERUN}."
        )
    del described["mean"], described["threshold"]
    return UnknownDetector(classifier.weights, mean[:-1], learned.threshold, described)
