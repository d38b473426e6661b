"""What is known of training images before anybody looks at them: features, and votes for classes.

Nothing here holds a table of all images and all classes: those are made for some rows at a time.

Letters: N training images, n some of them, C classes, D embedding width, U distinct captions, K
options of an image, R rows of a part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from latteclip.clip import feature_memmap
from latteclip.clip.classifier import Classifier
from latteclip.clip.feature_memmap import Features

ROWS = 4096  # images that are computed with at once
FLOOR = 50.0  # nats: an option that is less likely than the best by more counts as that much less
TURNS = 50  # after which means of images and of classes do not move any more
DECIMALS = 3  # of nats: differences by rounding are none
ALIKE = 1e-5  # features that lie closer to their mean than this do not tell images apart
Rows = slice | torch.Tensor
Deal = Callable[[torch.Tensor], torch.Tensor]


class Votes(Protocol):
    """What captions, or a model that was asked, say of the class of each image."""

    @property
    def has(self) -> torch.Tensor:
        """[N] bool: whether there is a vote."""

    def probabilities(self, rows: Rows) -> torch.Tensor:
        """Votes [n, C] float64, rows of sum 1, or of 0 without a vote; class means are off."""

    def features(self, rows: Rows) -> torch.Tensor | None:
        """Centred L2-normalised features [n, D] float64 of the texts, 0 without; None: no texts."""

    def dealing(self, rows: torch.Tensor) -> Deal:
        """From a permutation [n], the votes [n, C] if of each image another's votes were said."""


@dataclass(frozen=True)
class Images:
    """Image features about their mean, and the classes as their texts describe them.

    Logits of centred features under the class texts are zero-shot logits with each class's mean
    over the images taken off, up to a constant of each image.
    """

    centred: Features  # [N, D] float32, of mean length 1
    texts: torch.Tensor  # [C, D] float64: logits of centred features
    mean: torch.Tensor  # [D] float64
    length: float  # mean distance of the features from their mean

    @classmethod
    def of(cls, features: Features, classes: torch.Tensor, scale: float) -> "Images":
        """From features [N, D], which are overwritten, and class embeddings [C, D].

        Args:
            scale: factor of the cosines in a softmax.
        """
        n = len(features)
        mean, length = torch.zeros(features.shape[1], dtype=torch.float64), 0.0
        for rows in parts(n):
            mean += features[rows].sum(dim=0, dtype=torch.float64) / n
        for rows in parts(n):
            centred = features[rows] - mean.float()
            features[rows] = centred
            length += centred.norm(dim=1).sum(dtype=torch.float64).item() / n
        if length < ALIKE:
            length = 1.0
            for rows in parts(n):
                features[rows] = torch.zeros_like(features[rows])
        for rows in parts(n):
            features[rows] = features[rows] / length
        return cls(features, scale * length * classes.double(), mean, length)

    def zero_shot(self, rows: Rows) -> torch.Tensor:
        """Calibrated log-probabilities [n, C] float64."""
        return (self.centred[rows].double() @ self.texts.T).log_softmax(dim=1)

    def classifier(self, weights: torch.Tensor, scale: float) -> Classifier:
        """A classifier of features as they come, from logits of centred ones, weights [C, D]."""
        weights = weights / (self.length * scale)
        return Classifier.of(weights, -(weights @ self.mean))


@dataclass(frozen=True)
class ZeroShotVotes:
    """The calibrated zero-shot scores themselves, where nobody else says anything."""

    images: Images

    @property
    def has(self) -> torch.Tensor:
        return torch.ones(len(self.images.centred), dtype=torch.bool)

    def probabilities(self, rows: Rows) -> torch.Tensor:
        return self.images.zero_shot(rows).exp()

    def features(self, rows: Rows) -> None:
        return None

    def dealing(self, rows: torch.Tensor) -> Deal:
        return self.probabilities(rows).__getitem__


@dataclass(frozen=True)
class LabelVotes:
    """Labels that are there already, one for each image."""

    labels: torch.Tensor  # [N] classes
    n_classes: int

    @property
    def has(self) -> torch.Tensor:
        return torch.ones(len(self.labels), dtype=torch.bool)

    def probabilities(self, rows: Rows) -> torch.Tensor:
        return F.one_hot(self.labels[rows], self.n_classes).double()

    def features(self, rows: Rows) -> None:
        return None

    def dealing(self, rows: torch.Tensor) -> Deal:
        return self.probabilities(rows).__getitem__


@dataclass(frozen=True)
class CaptionVotes:
    """Captions, scored like images by the cosines of their features with the class embeddings."""

    has: torch.Tensor  # [N]
    texts: Features  # [U + 1, D] float32; a last row for images without
    mean: torch.Tensor  # [D] float32, of the captions
    row_of: torch.Tensor  # [N] the row of each image's caption
    classes: torch.Tensor  # [C, D] float64: class embeddings times the scale

    @classmethod
    def of(
        cls,
        texts: Features,
        row_of: torch.Tensor,
        classes: torch.Tensor,
        scale: float,
    ) -> "CaptionVotes":
        """From features [U + 1, D], the last one of no caption, and class embeddings [C, D]."""
        last = len(texts) - 1
        has = row_of != last
        counts = torch.bincount(row_of, minlength=len(texts))[:-1].double()  # [U]
        mean = torch.zeros(texts.shape[1], dtype=torch.float64)
        for part in parts(last):
            mean += counts[part] @ texts[part].double() / counts.sum().clamp(min=1)
        return cls(has, texts, mean.float(), row_of, scale * classes.double())

    def probabilities(self, rows: Rows) -> torch.Tensor:
        votes = (self._centred(rows) @ self.classes.T).softmax(dim=1)
        return votes * self.has[rows, None]

    def features(self, rows: Rows) -> torch.Tensor:
        return F.normalize(self._centred(rows), dim=1)

    def dealing(self, rows: torch.Tensor) -> Deal:
        return self.probabilities(rows).__getitem__

    def _centred(self, rows: Rows) -> torch.Tensor:
        """[n, D] float64, 0 where there is no caption."""
        texts = self.texts[self.row_of[rows]] - self.mean
        return texts.double() * self.has[rows, None]


@dataclass(frozen=True)
class ScoreVotes:
    """What a multimodal model answers when it is asked for the class, among some options."""

    has: torch.Tensor  # [N]
    options: torch.Tensor  # [N, K] classes, ascending; before them 0 where there are fewer
    scores: torch.Tensor  # [N, K] float32, means off; -inf where there are fewer
    n_classes: int

    @classmethod
    def of(cls, options: torch.Tensor, scores: torch.Tensor, n_classes: int) -> "ScoreVotes":
        """From options [N, K], -1 where there are fewer, and their log-probabilities [N, K]."""
        options, order = options.sort(dim=1)
        scores, given = scores.gather(1, order), options >= 0
        best = scores.masked_fill(~given, -torch.inf).amax(dim=1, keepdim=True)
        best = torch.where(best.isfinite(), best, 0.0)
        scores = (scores - best).clamp(min=-FLOOR)  # also of a probability of 0
        options = options.clamp(min=0)
        scores = scores.masked_fill(~given, 0.0)
        scores = _without_means(options, scores, given, n_classes)
        has = given.any(dim=1)
        return cls(has, options, scores.masked_fill(~given, -torch.inf), n_classes)

    def probabilities(self, rows: Rows) -> torch.Tensor:
        return self._table(self.options[rows], self.scores[rows])

    def features(self, rows: Rows) -> None:
        return None

    def dealing(self, rows: torch.Tensor) -> Deal:
        """An image keeps its options: CLIP chose them, so they tell of it whatever is answered."""
        options, scores = self.options[rows], self.scores[rows]
        lacking = scores.isinf()
        # An image with fewer options lends the others the mean score of their class.
        lent = scores.masked_fill(lacking, 0.0)
        return lambda deal: self._table(options, lent[deal].masked_fill(lacking, -torch.inf))

    def _table(self, options: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Votes [n, C] by scores [n, K] of options [n, K]."""
        votes = scores.double().softmax(dim=1).nan_to_num(0.0)
        table = votes.new_zeros(len(votes), self.n_classes)
        return table.scatter_add_(1, options, votes)


def _without_means(
    options: torch.Tensor,
    scores: torch.Tensor,
    given: torch.Tensor,
    n_classes: int,
) -> torch.Tensor:
    """Scores [N, K] less what is the same for all options of an image or for all of a class.

    The sum of both that fits best is found by turns. Where images have different options, means of
    classes alone would keep how good the other options were.

    Args:
        options: [N, K] classes.
        scores: [N, K], 0 where there is no option.
        given: [N, K] where there is one.
        n_classes: C.
    """
    where, owners = options[given], given.nonzero()[:, 0]
    values = scores[given].double()
    per_class = torch.bincount(where, minlength=n_classes).clamp(min=1)
    per_image = given.sum(dim=1).clamp(min=1)
    means = torch.zeros(n_classes, dtype=torch.float64)
    for _ in range(TURNS):
        found = torch.zeros_like(means).index_add_(0, where, values) / per_class
        means += found
        values -= found[where]
        sums = torch.zeros(len(scores), dtype=torch.float64).index_add_(0, owners, values)
        values -= (sums / per_image)[owners]
    without = (scores.double() - means[options]).masked_fill(~given, 0.0)
    without -= without.sum(dim=1, keepdim=True) / per_image[:, None]
    return without.round(decimals=DECIMALS).float()


def parts(n: int) -> Iterator[slice]:
    """The rows of n images, ROWS at a time."""
    return feature_memmap.parts(n, ROWS)
