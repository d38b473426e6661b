"""Learn classes from image features: scores of images by the images of other folds."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from latteclip.labels.votes import Floats, Ints, log, softmax

TINY = 1e-12
FOLDS, HEAD_FOLDS = 20, 5
SHRINKAGE = 0.4  # of covariances towards the identity, at least
ROWS = 2**16  # images from which covariances are estimated
SCALE = 100.0  # of CLIP's cosines
LEAN_STEPS = 10  # until the classes that texts name hardly change


def fold_of(keys: Ints, groups: Ints | None) -> Ints:
    """Return the fold [n] of each image: classes are spread evenly, and groups are in one."""
    n = len(keys)
    number = np.arange(n)
    if groups is not None:
        _, at, number = np.unique(groups, return_index=True, return_inverse=True)
        keys = keys[at]
    order = np.random.default_rng(0).permutation(len(keys))
    by_class = order[np.argsort(keys[order], kind="stable")]
    fold = np.empty(len(keys), dtype=np.int64)
    fold[by_class] = np.arange(len(keys)) % FOLDS
    return np.asarray(fold[number])


def shrunken(covariance: Floats, share: float) -> Floats:
    """Return a covariance, scaled to a mean variance of 1 and shrunken towards the identity."""
    scale = max(np.diag(covariance).mean(), 1e-10)
    identity = np.eye(len(covariance), dtype=np.float32)
    return np.asarray((1 - share) * covariance / scale + share * identity)


class Whitener:
    """Turn features of an encoder into whitened ones of mean length 1."""

    def __init__(self, features: Floats) -> None:
        some = np.asarray(features[:: -(-len(features) // ROWS)], dtype=np.float32)
        self.mean = some.mean(axis=0)
        x = some - self.mean
        n, d = x.shape
        covariance = shrunken(x.T @ x / n, max(SHRINKAGE, d / (d + n)))
        values, vectors = np.linalg.eigh(covariance)
        self.matrix = (vectors * values**-0.5 @ vectors.T).astype(np.float32)
        length = float(np.linalg.norm(x @ self.matrix, axis=1).mean())
        self.matrix /= max(length, 1e-6)

    def __call__(self, features: Floats) -> Floats:
        return np.asarray(
            (np.asarray(features, np.float32) - self.mean) @ self.matrix
        )


class ImageClasses:
    """Whitened features of n images by one encoder, and the sums of the classes."""

    # Whether the images of a class are a cluster, not a direction.
    clusters = False

    def __init__(self, x: Floats, folds: Ints) -> None:
        self.x = x
        self.folds = folds

    def halves(self) -> list["ImageClasses"]:
        """Return two views of the images: halves of the features, rotated at random."""
        d = self.x.shape[1]
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
        x = self.x @ rotation.astype(np.float32)
        views = [copy.copy(self), copy.copy(self)]
        views[0].x, views[1].x = x[:, : d // 2], x[:, d // 2 :]
        return views

    def learn(self, r: Floats) -> None:
        """Learn the classes from a posterior [n, C]; rows of 0 say nothing."""
        c = r.shape[1]
        self.counts = np.zeros((FOLDS, c), dtype=np.float32)
        self.sums = np.zeros((FOLDS, c, self.x.shape[1]), dtype=np.float32)
        for fold in range(FOLDS):
            part = self.folds == fold
            self.counts[fold] = r[part].sum(axis=0)
            self.sums[fold] = r[part].T @ self.x[part]
        if self.clusters:
            self.kappa = self._within_over_between(r)

    def _within_over_between(self, r: Floats) -> float:
        """Return the variance within over that between classes, by products of two images."""
        n = self.counts.sum(axis=0)
        centre, sums = self._centred(n, self.sums.sum(axis=0))
        lengths = ((self.x - centre) ** 2).sum(axis=1)
        # An image with itself is no pair.
        pairs = max((n**2).sum() - (r**2).sum(), TINY)
        between = ((sums**2).sum() - (r**2 * lengths[:, None]).sum()) / pairs
        total = (r.sum(axis=1) * lengths).sum() / max(r.sum(), TINY)
        return float(np.clip((total - between) / max(between, TINY), 1e-2, 1e3))

    @staticmethod
    def _centred(n: Floats, sums: Floats) -> tuple[Floats, Floats]:
        """Return the mean of the classes and their sums about it.

        A class with most of the images would be the mean of the images, and have no direction.
        """
        # A class of n images counts n / (n + 1), one without images nothing.
        means = sums / (n + 1)[:, None]
        size = max((n / (n + 1)).sum(), 1e-9)
        centre = means.sum(axis=0) / size
        return centre, sums - n[:, None] * centre

    def scores(self, x: Floats | None = None, folds: Ints | None = None) -> Floats:
        """Return scores [n, C] of images by those of other folds, by default of the own images.

        They are <x, S_c / |S_c|>, or of clusters <x, m_c> - |m_c|^2 / 2, m_c = S_c / (n_c + kappa).
        """
        x = self.x if x is None else x
        folds = self.folds if folds is None else folds
        table = np.empty((len(x), self.counts.shape[1]), dtype=np.float32)
        counts, sums = self.counts.sum(axis=0), self.sums.sum(axis=0)
        for fold in np.unique(folds):
            part = folds == fold
            n = counts - self.counts[fold]
            centre, others = self._centred(n, sums - self.sums[fold])
            squares = np.maximum((others**2).sum(axis=1), 1e-9)
            size = n + self.kappa if self.clusters else np.sqrt(squares)
            classes = others / size[:, None]
            table[part] = (x[part] - centre) @ classes.T
            if self.clusters:
                table[part] -= 0.5 * squares / size**2
        return table


def class_sums(classes: Ints, table: Floats, n_classes: int) -> Floats:
    """Return the sums [C, K] of the rows of a table [n, K] by their classes [n]."""
    n = len(classes)
    members = csr_array(
        (np.ones(n, np.float32), (classes, np.arange(n))), shape=(n_classes, n)
    )
    return np.asarray(members @ table)


def lean(scores: Floats) -> Floats:
    """Return how far class texts lean to each class [C], by their scores [n, C] of images.

    That is the mean score of the classes, whatever their frequencies: of those that the texts name
    without their lean. Each class has n / C images of score 0 besides, so that little is subtracted
    where the texts name few classes.
    """
    n, c = scores.shape
    found: Floats = np.zeros(c, dtype=np.float32)
    for _ in range(LEAN_STEPS):
        named = (scores - found).argmax(axis=1)
        counts = np.bincount(named, minlength=c) + n / c
        found = (class_sums(named, scores, c) / counts[:, None]).mean(axis=0)
    return found


def pool(offset: Any, weights: Any, tables: Sequence[Floats]) -> Floats:
    """Return the log-linear pool of tables [n, C]."""
    weighted = [np.float32(a) * t for a, t in zip(weights, tables, strict=True)]
    return np.asarray(offset + sum(weighted))


def fit_weights(
    tables: Sequence[Floats],
    targets: Floats,
    offset: Any,
    start: Any,
    *,
    centre: float = 0.0,
    precision: float = 1e-3,
    steps: int = 20,
) -> Floats:
    """Return weights >= 0 that make targets [n, C] likeliest, by Newton's method with halving."""
    weights: Floats = np.array(start, dtype=float)
    if not tables:
        return weights
    size = targets.sum(axis=1)

    def value(q: Floats, w: Floats) -> float:
        likelihood = (targets * log(q)).sum()
        prior = -0.5 * precision * ((w - centre) ** 2).sum()
        return float(likelihood + prior)

    q = softmax(pool(offset, weights, tables))
    best = value(q, weights)
    for _ in range(steps):
        rest = targets - size[:, None] * q
        slope = np.array([(rest * t).sum() for t in tables])
        slope -= precision * (weights - centre)
        curve = _curvature(q, size, tables) + precision * np.eye(len(tables))
        step = np.linalg.solve(curve, slope)
        # The step is halved until the value does not fall.
        for half in range(10):
            new = np.maximum(weights + step / 2**half, 0)
            q = softmax(pool(offset, new, tables))
            found = value(q, new)
            if found >= best:
                break
        else:
            break
        gained, weights, best = found - best, new, found
        if gained < 1e-6 * abs(best):
            break
    return weights


def _curvature(q: Floats, size: Floats, tables: Sequence[Floats]) -> Floats:
    """Return the sum of the covariances of V tables [n, C] by q, each row of its size: [V, V]."""
    curve = np.zeros((len(tables), len(tables)))
    means = [(q * t).sum(axis=1) for t in tables]
    for i, s in enumerate(tables):
        for j, t in enumerate(tables[: i + 1]):
            covariance = (q * s * t).sum(axis=1) - means[i] * means[j]
            curve[i, j] = curve[j, i] = (size * covariance).sum()
    return curve


# Directions [C, D] and biases [C] of a linear classifier.
Head = tuple[Floats, Floats]


class Heads:
    """Linear discriminants of features as they are, of all images and of those of other folds."""

    def __init__(self, n_classes: int, width: int) -> None:
        self.counts = np.zeros((HEAD_FOLDS, n_classes))
        self.sums = np.zeros((HEAD_FOLDS, n_classes, width))
        self.squares = np.zeros((HEAD_FOLDS, width, width))

    def add(self, x: Floats, r: Floats, folds: Ints) -> None:
        """Add images by their posterior [n, C]."""
        for fold in np.unique(folds % HEAD_FOLDS):
            part = folds % HEAD_FOLDS == fold
            own, shares = x[part], r[part]
            self.counts[fold] += shares.sum(axis=0)
            self.sums[fold] += shares.T @ own
            self.squares[fold] += (own * shares.sum(axis=1)[:, None]).T @ own

    def head(self, without: int | None = None) -> Head:
        """Return directions [C, D] and biases [C] of the classes, without those of a fold."""
        used = [fold for fold in range(HEAD_FOLDS) if fold != without]
        n = np.maximum(self.counts[used].sum(axis=0), TINY)
        sums = self.sums[used].sum(axis=0)
        mean = sums.sum(axis=0) / n.sum()
        # Sums of the classes about the mean, and squares about the means of the classes.
        about = sums - n[:, None] * mean
        within = self.squares[used].sum(axis=0) - sums.T @ (sums / n[:, None])
        covariance = shrunken(within / n.sum(), SHRINKAGE)
        weights = np.linalg.solve(covariance, about.T).T
        # Directions of the same length, as the covariance measures it.
        squares = np.maximum((weights * about).sum(axis=1), 1e-9)
        weights /= np.sqrt(squares)[:, None]
        return weights, -weights @ mean


def by_folds(heads: Mapping[int | None, Head], x: Floats, folds: Ints) -> Floats:
    """Return logits [n, C] of images by the heads that leave out their folds."""
    table = np.zeros((len(x), len(heads[None][1])), dtype=np.float32)
    for fold in range(HEAD_FOLDS):
        weights, bias = heads[fold]
        part = folds % HEAD_FOLDS == fold
        table[part] = x[part] @ weights.T + bias
    return table


class LinearHead(NamedTuple):
    """A linear classifier of features, and its classes for images that it did not learn from."""

    coef: Floats  # [C, D]
    intercept: Floats  # [C]
    labels: Ints  # [N] learned from other folds
    held_out: Floats  # [J, C] probabilities for images with drawn answers

    def logits(self, x: Floats) -> Floats:
        """Return logits [n, C] of features, or raise ValueError for another width."""
        width = self.coef.shape[1]
        if x.shape[1] != width:
            raise ValueError(
                f"Features have {x.shape[1]} numbers, those of the fit have {width}."
            )
        return np.asarray(x @ self.coef.T + self.intercept)
