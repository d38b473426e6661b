"""Image features, votes for classes and a person's answers, with the letters of `fusion`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F

from latteclip.clip import classifier as classifiers
from latteclip.clip.classifier import Classifier, Features

ROWS = 4096  # images that are computed with at once
FLOOR = 50.0  # nats: the largest difference between the scores of two options of an image
ITERATIONS = 50  # after which means of images and of classes have converged
DECIMALS = 3  # decimals of nats that count: smaller differences are rounding errors
# Mean distance from the mean below which features do not tell images apart.
MIN_LENGTH = 1e-5
# A covariance of D dimensions by N images shrinks towards a multiple of the identity. This weighs
# as much as 4 D images, and its share is at least MIN_SHRINKAGE. Chosen on features of CLIP.
IMAGES_PER_DIMENSION = 4
MIN_SHRINKAGE = 0.4
COVARIANCE_ROWS = 2**16  # images from which it is estimated, at most
NO_VOTE = -1  # the number that stands for no class
Rows = slice | torch.Tensor


class Head(NamedTuple):
    """A linear classifier of centred features, in logits."""

    weights: torch.Tensor  # [C, D] float64
    bias: torch.Tensor  # [C] float64

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [n, C] of centred features [n, D] float64."""
        return x @ self.weights.T + self.bias


@dataclass(frozen=True)
class CentredFeatures:
    """Whitened image features of one model about their mean, of mean length 1."""

    centred: Features  # [N, D] float32
    mean: torch.Tensor  # [D] float64
    length: float  # mean distance of the features from their mean
    whitening: torch.Tensor  # [D, D] float64, symmetric: applied before centring

    @staticmethod
    def centre(features: Features, whitening: torch.Tensor) -> "CentredFeatures":
        """Centre whitened features [N, D] in place."""
        n = len(features)
        mean = torch.zeros(features.shape[1], dtype=torch.float64)
        length = 0.0
        for rows in parts(n):
            mean += features[rows].sum(dim=0, dtype=torch.float64) / n
        for rows in parts(n):
            centred = features[rows] - mean.float()
            features[rows] = centred
            distances = centred.norm(dim=1)
            length += distances.sum(dtype=torch.float64).item() / n
        is_constant = length < MIN_LENGTH
        if is_constant:
            length = 1.0
        for rows in parts(n):
            features[rows] = features[rows] * 0 if is_constant else features[rows] / length
        return CentredFeatures(features, mean, length, whitening)

    def classifier(self, head: "Head", scale: float) -> Classifier:
        """Return a classifier of features as they were from a head of the centred ones."""
        weights = head.weights / self.length
        bias = head.bias - weights @ self.mean
        return Classifier.of(weights @ self.whitening / scale, bias / scale)


def whiten(features: Features) -> CentredFeatures:
    """Whiten and centre features [N, D] in place.

    Prototypes of whitened features are a linear discriminant analysis whose covariance, shrunken
    towards a multiple of the identity, needs no labels.
    """
    n, width = features.shape
    step = math.ceil(n / COVARIANCE_ROWS)
    sample = features[slice(None, None, step)].double()
    sample = sample - sample.mean(dim=0)
    covariance = sample.T @ sample / len(sample)
    images_per_weight = n / (IMAGES_PER_DIMENSION * width)
    shrinkage = max(MIN_SHRINKAGE, 1 / (1 + images_per_weight))
    whitening = whitener(covariance, shrinkage)
    for rows in parts(n):
        features[rows] = features[rows] @ whitening.float()
    return CentredFeatures.centre(features, whitening)


def whitener(covariance: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Return the inverse root [D, D] of a covariance shrunken towards a multiple of the identity.

    The covariance is scaled to a mean variance of 1.
    """
    identity = torch.eye(len(covariance), dtype=torch.float64)
    variance = covariance.trace() / len(covariance)
    scaled = covariance / variance.clamp(min=MIN_LENGTH**2)
    shrunken = torch.lerp(scaled, identity, shrinkage)
    values, vectors = torch.linalg.eigh(shrunken)
    root: torch.Tensor = vectors * values.rsqrt() @ vectors.T
    return root


@dataclass(frozen=True)
class ClipFeatures(CentredFeatures):
    """CLIP's centred image features, and the classes as their texts describe them."""

    texts: Head = field(kw_only=True)  # zero-shot logits of centred features
    text_bias: torch.Tensor = field(kw_only=True)  # [C] their mean over the images
    # The same adapted to the images; `texts` before that.
    adapted: Head = field(kw_only=True)

    @classmethod
    def of(cls, features: Features, classes: torch.Tensor, scale: float) -> Self:
        """Centre features [N, D] in place and scale class embeddings [C, D] as for a softmax."""
        images = whiten(features)
        logits = scale * torch.linalg.solve(images.whitening, classes.double().T).T
        bias = logits @ images.mean
        texts = Head(images.length * logits, bias)
        return cls(**vars(images), texts=texts, text_bias=bias, adapted=texts)

    def without_bias(self, share: float) -> Self:
        """Subtract a share of each class's mean logit."""
        return replace(self, texts=self.texts._replace(bias=(1 - share) * self.text_bias))

    def zero_shot(self, rows: Rows) -> torch.Tensor:
        """Return log-probabilities [n, C] float64."""
        return self.texts.logits(self.centred[rows].double()).log_softmax(dim=1)

    def probabilities(self, rows: Rows) -> torch.Tensor:
        """Return probabilities [n, C] float64."""
        return self.zero_shot(rows).exp()


@dataclass(frozen=True)
class Votes:
    """What captions, or a model that was asked, say of the class of each image."""

    has: torch.Tensor  # [N] bool: whether there is a vote
    # Votes [n, C] float64 of rows, of sum 1, or of 0 without a vote.
    probabilities: Callable[[Rows], torch.Tensor]
    # Centred L2-normalised features [n, D] float64 of the texts of rows, 0 without a text.
    text_features: Callable[[Rows], torch.Tensor] | None = None
    # A function from a permutation [n] to the votes [n, C] of rows in its order, if special.
    permuted: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]] | None = None

    def reordered(self, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from a permutation [n] to the votes [n, C] of rows in its order."""
        if self.permuted is not None:
            return self.permuted(rows)
        probabilities = self.probabilities(rows)
        return lambda order: probabilities[order]


def label_votes(labels: torch.Tensor, n_classes: int) -> Votes:
    """Return votes that are certain, for labels [N], of which NO_VOTE is none."""
    has = labels != NO_VOTE
    numbers = labels.long().clamp(min=0)

    def probabilities(rows: Rows) -> torch.Tensor:
        return F.one_hot(numbers[rows], n_classes).double() * has[rows, None]

    return Votes(has, probabilities)


def option_votes(
    options: torch.Tensor, log_probabilities: torch.Tensor, n_classes: int
) -> Votes:
    """Return votes by log-probabilities [N, K] of K options of each image, of which -1 is none.

    They are normalised over the options of the image, which is silent where it has none.
    """
    given = options >= 0
    numbers = options.clamp(min=0)

    def probabilities(rows: Rows) -> torch.Tensor:
        shares = log_probabilities[rows].double().masked_fill(~given[rows], -torch.inf)
        shares = shares.softmax(dim=1).nan_to_num(0.0)  # rows without options
        table = shares.new_zeros(len(shares), n_classes)
        return table.scatter_add_(1, numbers[rows], shares)

    return Votes(given.any(dim=1), probabilities)


def caption_votes(
    texts: Features, row_of: torch.Tensor, classes: torch.Tensor, scale: float
) -> Votes:
    """Score captions like images, by scaled cosines of their features and the classes [C, D].

    Texts of U captions are [U + 1, D], the last row for images without one, and `row_of` is [N].
    """
    last = len(texts) - 1
    has = row_of != last
    counts = torch.bincount(row_of, minlength=len(texts))[:-1].double()  # [U]
    n = counts.sum().clamp(min=1)
    mean = torch.zeros(texts.shape[1], dtype=torch.float64)
    for part in parts(last):
        mean += counts[part] @ texts[part].double() / n
    centre = mean.float()
    logits = scale * classes.double()

    def centred(rows: Rows) -> torch.Tensor:
        of_rows = texts[row_of[rows]] - centre
        return of_rows.double() * has[rows, None]

    def probabilities(rows: Rows) -> torch.Tensor:
        votes = (centred(rows) @ logits.T).softmax(dim=1)
        return votes * has[rows, None]

    return Votes(has, probabilities, lambda rows: F.normalize(centred(rows), dim=1))


def class_score_votes(
    options: torch.Tensor, scores: torch.Tensor, n_classes: int, bias_share: float = 0.0
) -> Votes:
    """Return votes by log-probabilities [N, K] of K options of each image, of which -1 is none.

    A share of each class's mean score is subtracted.

    An image keeps its options when votes are permuted: CLIP chose the options, so they carry
    information about the image whatever the answer is. What is permuted are residuals, from which
    the means of classes and of images are subtracted.
    """
    options, order = options.sort(dim=1)
    scores = scores.gather(1, order)
    given = options >= 0
    best = scores.masked_fill(~given, -torch.inf).amax(dim=1, keepdim=True)
    best = torch.where(best.isfinite(), best, 0.0)
    # The floor is also the score of a probability of 0.
    scores = (scores - best).clamp(min=-FLOOR).masked_fill(~given, 0.0)
    options = options.clamp(min=0)
    means = _class_means(options, scores, given, n_classes)
    unbiased = (scores - bias_share * means[options]).round(decimals=DECIMALS)
    residuals = _rounded_residuals(scores - means[options], given)

    def table(options: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        votes = scores.double().softmax(dim=1).nan_to_num(0.0)
        return votes.new_zeros(len(votes), n_classes).scatter_add_(1, options, votes)

    def probabilities(rows: Rows) -> torch.Tensor:
        own = unbiased[rows].masked_fill(~given[rows], -torch.inf)
        return table(options[rows], own)

    def permuted(rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        # An image with fewer options lends the others a residual of 0.
        own = options[rows]
        missing = ~given[rows]
        lent = residuals[rows]
        return lambda order: table(own, lent[order].masked_fill(missing, -torch.inf))

    return Votes(given.any(dim=1), probabilities, None, permuted)


def _rounded_residuals(scores: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Subtract each image's mean from its given scores [N, K]; the others are 0."""
    scores = scores.masked_fill(~given, 0.0)
    means = scores.sum(dim=1, keepdim=True) / given.sum(dim=1, keepdim=True).clamp(min=1)
    return (scores - means).masked_fill(~given, 0.0).round(decimals=DECIMALS)


def _class_means(
    options: torch.Tensor, scores: torch.Tensor, given: torch.Tensor, n_classes: int
) -> torch.Tensor:
    """Return the effects [C] of classes on scores [N, K], beside those of images.

    They are alternating means: where images have different options, the mean scores of a class
    alone would contain how good the other options were. Scores are 0 where none is given [N, K].
    """
    where = options[given]
    owners = given.nonzero()[:, 0]
    values = scores[given].double()
    per_class = torch.bincount(where, minlength=n_classes).clamp(min=1)
    per_image = given.sum(dim=1).clamp(min=1)
    means = torch.zeros(n_classes, dtype=torch.float64)
    for _ in range(ITERATIONS):
        step = torch.zeros_like(means).index_add_(0, where, values) / per_class
        means += step
        values -= step[where]
        sums = torch.zeros(len(scores), dtype=torch.float64).index_add_(0, owners, values)
        values -= (sums / per_image)[owners]
    return means


@dataclass(frozen=True)
class LabelledRows:
    """A person's answers about A of N training images."""

    n: int
    rows: torch.Tensor  # [A]
    # [A, C] float64 share of each class; 0 for an image of none of them
    shares: torch.Tensor
    drawn: torch.Tensor  # [A] bool: whether the image was drawn at random, to check labels

    def select(self, mask: torch.Tensor) -> "LabelledRows":
        return LabelledRows(self.n, self.rows[mask], self.shares[mask], self.drawn[mask])

    @cached_property
    def place(self) -> torch.Tensor:
        """Return the place [N] of each image among the answered ones, or -1."""
        place = torch.full((self.n,), -1)
        place[self.rows] = torch.arange(len(self.rows))
        return place

    @property
    def taught(self) -> torch.Tensor:
        """Return the rows of the images of one of the classes."""
        return self.rows[self.shares.any(dim=1)]

    @property
    def truth(self) -> torch.Tensor:
        """Return the shares of these images."""
        return self.shares[self.shares.any(dim=1)]

    def replace(self, rows: Rows, log_posterior: torch.Tensor) -> torch.Tensor:
        """Return a log-posterior [n, C] in which answered rows follow the answers.

        It decides between two answers that differ. An image of no class has -inf for all.
        """
        place = self.place[rows]
        is_answered = place >= 0
        if not is_answered.any():
            return log_posterior
        shares = self.shares[place[is_answered]]
        answered = (shares.log() + log_posterior[is_answered]).log_softmax(dim=1)
        table = log_posterior.clone()
        table[is_answered] = answered.nan_to_num(-torch.inf, neginf=-torch.inf)
        return table

    def at_end(self, table: torch.Tensor) -> torch.Tensor:
        """Return a table [n, C] in which the last rows, those of `taught`, are the answers."""
        n_others = len(table) - len(self.truth)
        return torch.cat([table[:n_others], self.truth])


def parts(n: int) -> Iterator[slice]:
    """Return the rows of n images, ROWS at a time."""
    return classifiers.parts(n, ROWS)
