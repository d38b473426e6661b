"""Prototypes of classes by a posterior, and the linear discriminants that follow from them.

Letters: N images, n some of them, C classes, D embedding width, K classes kept, M image encoders.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import best_classes
from latteclip.labels.label_sources import (
    CentredFeatures,
    ClipFeatures,
    Rows,
    parts,
    whitener,
)
from latteclip.labels.likelihood import TINY

KEPT = 16  # classes of an image that have a share in the prototypes
SHARPNESS = 5.0  # factor that brings cosines to the size of log-probabilities
# Exponent of the frequencies of classes: between frequencies that are ignored, which lose where
# classes are unbalanced, and those of votes, which are biased.
FREQUENCY_EXPONENT = 0.5
# Shrinkage of the covariance within classes: chosen on features of CLIP.
HEAD_SHRINKAGE = 0.7
FOLDS = 5  # folds of the images: each is scored by a discriminant of the others


@dataclass(frozen=True)
class Posterior:
    """Probabilities of classes: of each image the KEPT largest, which sum to 1."""

    classes: torch.Tensor  # [N, K] int32
    shares: torch.Tensor  # [N, K] float32; 0 for an image of which nothing is known yet
    n_classes: int
    weights: torch.Tensor  # [N] float64 of images in the prototypes

    @classmethod
    def of(
        cls, table: Callable[[slice], torch.Tensor], n_classes: int, weights: torch.Tensor
    ) -> Self:
        """Keep the largest probabilities of N images, of which `table` returns some rows [n, C]."""
        n = len(weights)
        k = min(KEPT, n_classes)
        kept = cls(
            torch.zeros(n, k, dtype=torch.int32), torch.zeros(n, k), n_classes, weights
        )
        for rows in parts(n):
            classes, shares = best_classes(table(rows), k)
            kept.classes[rows] = classes.int()
            kept.shares[rows] = (
                shares / shares.sum(dim=1, keepdim=True).clamp(min=TINY)
            ).float()
        return kept

    def table(self, rows: Rows) -> torch.Tensor:
        """Return weighted probabilities [n, C] float64."""
        shares = self._weighted(rows)
        table = shares.new_zeros(len(shares), self.n_classes)
        return table.scatter_(1, self.classes[rows].long(), shares)

    def sums(self, rows: Rows, x: torch.Tensor) -> torch.Tensor:
        """Return sums [C, D] of x [n, D] float64 by the shares of these rows in the classes."""
        classes = self.classes[rows].long()
        owners = torch.arange(len(x))[:, None].expand_as(classes)
        shares = self._weighted(rows)
        table = torch.sparse_coo_tensor(
            torch.stack([classes.flatten(), owners.flatten()]),
            shares.flatten(),
            (self.n_classes, len(x)),
            check_invariants=True,
        )
        return table @ x

    def counts(self, rows: Rows) -> torch.Tensor:
        """Return the weighted number [C] of images of each class among some rows."""
        shares = self._weighted(rows)
        classes = self.classes[rows].flatten()
        return torch.bincount(classes, shares.flatten(), minlength=self.n_classes)

    def _weighted(self, rows: Rows) -> torch.Tensor:
        """Return the shares [n, K] of some images, times their weights."""
        return self.shares[rows].double() * self.weights[rows, None]

    def log_frequencies(self) -> torch.Tensor:
        """Return the logs [C] of the frequencies of classes, one image of each class added."""
        counts = self.counts(slice(None)) + 1
        return (counts / counts.sum()).log()


class Prototypes:
    """Prototypes of classes by one posterior, of the images by each model and of their texts."""

    def __init__(
        self,
        images: ClipFeatures,
        posterior: Posterior,
        others: Sequence[CentredFeatures] = (),
        text_features: Callable[[Rows], torch.Tensor] | None = None,
    ) -> None:
        self.images = images
        self.posterior = posterior
        self.text_features = text_features
        self.models: tuple[CentredFeatures, ...] = (images, *others)
        n_classes = posterior.n_classes
        self.offset = FREQUENCY_EXPONENT * posterior.log_frequencies()
        self.sums = [m.mean.new_zeros(n_classes, len(m.mean)) for m in self.models]
        self.text_sums = torch.zeros_like(images.texts.weights)
        for rows in parts(len(images.centred)):
            for model, sums in zip(self.models, self.sums, strict=True):
                sums += posterior.sums(rows, model.centred[rows].double())
            if text_features is not None:
                self.text_sums += posterior.sums(rows, text_features(rows))

    def predictors(self, rows: Rows) -> list[torch.Tensor]:
        """Return z and s of each model, [n, C] each: the predictors of the votes."""
        table = self.posterior.table(rows)
        scores = [
            SHARPNESS * own_part_left_out(model.centred[rows].double(), table, sums)
            for model, sums in zip(self.models, self.sums, strict=True)
        ]
        return [self.images.zero_shot(rows), *scores]

    def text_scores(self, rows: Rows) -> torch.Tensor | None:
        """Return t [n, C], 0 for an image without caption; None where no image has one."""
        if self.text_features is None:
            return None
        texts = self.text_features(rows)
        table = self.posterior.table(rows)
        return SHARPNESS * own_part_left_out(texts, table, self.text_sums)


def own_part_left_out(
    x: torch.Tensor, table: torch.Tensor, prototypes: torch.Tensor
) -> torch.Tensor:
    """Return products [n, C] of rows with L2-normalised prototypes, each without the row's part.

    Prototypes are sums [C, D] of rows x [n, D] by their shares in a table [n, C].
    """
    products = x @ prototypes.T
    squares = prototypes.square().sum(dim=1)
    own = _OwnPart.of(x, table, products, squares)
    scores = products / squares.clamp(min=1e-6).sqrt()
    scores[own.place] = own.products / own.squares.clamp(min=1e-6).sqrt()
    return scores


def log_densities(
    x: torch.Tensor, table: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Return log-densities [n, C] of rows by classes of unit variance, without the row's part.

    They lack what all classes share. Means are sums [C, D] of rows x [n, D] by their shares in a
    table [n, C], and of one image at the origin, over the counts [C].
    """
    products = x @ sums.T
    squares = sums.square().sum(dim=1)
    own = _OwnPart.of(x, table, products, squares)
    n = counts + 1
    densities = products / n - 0.5 * squares / n.square()
    n_others = n[own.place[1]] - own.shares
    densities[own.place] = own.products / n_others - 0.5 * own.squares / n_others.square()
    return densities


class _OwnPart(NamedTuple):
    """What changes for E pairs of an image and a class when the image leaves the class."""

    place: tuple[torch.Tensor, torch.Tensor]  # [E] rows and classes
    shares: torch.Tensor  # [E] of the image in the class
    products: torch.Tensor  # [E] of the image with the sum of the others
    squares: torch.Tensor  # [E] of that sum

    @classmethod
    def of(
        cls,
        x: torch.Tensor,
        table: torch.Tensor,
        products: torch.Tensor,
        squares: torch.Tensor,
    ) -> Self:
        """Return the pairs with a share in a table [n, C].

        Products [n, C] of rows x [n, D] and squares [C] are those of the sums of all rows.
        """
        rows, classes = table.nonzero(as_tuple=True)
        shares = table[rows, classes]
        own = x.square().sum(dim=1)[rows]
        of_all = products[rows, classes]
        rest = squares[classes] - 2 * shares * of_all + shares.square() * own
        return cls((rows, classes), shares, of_all - shares * own, rest)


@dataclass(frozen=True)
class Moments:
    """Sums over images of one model, by their shares in classes."""

    counts: torch.Tensor  # [C]
    sums: torch.Tensor  # [C, D]
    squares: torch.Tensor  # [D, D] sum of x x^T

    @classmethod
    def of_folds(cls, posterior: Posterior, model: CentredFeatures) -> list[Self]:
        """Return the moments of each fold of the images."""
        n = len(model.centred)
        c = posterior.n_classes
        d = len(model.mean)
        zeros = partial(torch.zeros, dtype=torch.float64)
        folds = [cls(zeros(c), zeros(c, d), zeros(d, d)) for _ in range(FOLDS)]
        for part in parts(n):
            for fold, moments in enumerate(folds):
                rows = torch.arange(part.start, part.stop)
                rows = rows[rows % FOLDS == fold]
                x = model.centred[rows].double()
                moments.counts.add_(posterior.counts(rows))
                moments.sums.add_(posterior.sums(rows, x))
                shares = posterior.table(rows).sum(dim=1, keepdim=True)
                moments.squares.add_((shares * x).T @ x)
        return folds

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            counts=self.counts + other.counts,
            sums=self.sums + other.sums,
            squares=self.squares + other.squares,
        )

    def discriminant(self) -> torch.Tensor:
        """Return [C, D]: SHARPNESS times the directions of the class means.

        They are compared where the covariance within classes, shrunken, is the identity, and where
        images have the mean square length 1.
        """
        n = self.counts.sum().clamp(min=TINY)
        counts = self.counts.clamp(min=TINY)
        means = self.sums / counts[:, None]
        within = (self.squares - self.sums.T @ means) / n
        root = whitener(within, HEAD_SHRINKAGE)
        whitened = root @ self.squares
        square_length = whitened.mul(root).sum() / n
        length = square_length.clamp(min=TINY).sqrt()
        directions = F.normalize(self.sums @ root, dim=1)
        return SHARPNESS * directions @ root / length


class Discriminants:
    """Linear discriminants of some models: of all images, and of those outside of each fold."""

    def __init__(self, posterior: Posterior, models: Sequence[CentredFeatures]) -> None:
        self.models = models
        self.of_all: list[torch.Tensor] = []  # a discriminant [C, D] for each model
        # A discriminant [C, D] for each model and fold.
        self.of_others: list[list[torch.Tensor]] = []
        for model in models:
            folds = Moments.of_folds(posterior, model)
            of_others = []
            for fold in range(FOLDS):
                rest = _total(folds[:fold] + folds[fold + 1 :])
                of_others.append(rest.discriminant())
            self.of_all.append(_total(folds).discriminant())
            self.of_others.append(of_others)

    def held_out(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return scores [n, C] of each model, by the images outside of the row's fold."""
        tables = []
        for model, weights in zip(self.models, self.of_others, strict=True):
            x = model.centred[rows].double()
            scores = x.new_zeros(len(x), len(weights[0]))
            for fold in range(FOLDS):
                is_in = rows % FOLDS == fold
                scores[is_in] = x[is_in] @ weights[fold].T
            tables.append(scores)
        return tables


def _total(moments: Sequence[Moments]) -> Moments:
    first, *others = moments
    for one in others:
        first = first + one
    return first


def spaced(rows: torch.Tensor, n_classes: int, entries: int) -> torch.Tensor:
    """Return evenly spaced rows, whose table of classes has about so many entries."""
    step = math.ceil(max(1, len(rows)) * n_classes / entries)
    return rows[::step]
