"""Groups of images by features and names, and the classes that they merge into.

An image begins in the group of its most reliable name. Until no image moves, each goes to the group
where

    SHARPNESS (cos(x, X_k) + r cos(u, U_k)) + log n_k / 2

is largest: x are whitened image features, u are weighted names, r is how well features predict the
name, X_k and U_k are the means of group k without the image itself. Groups of fewer than MIN_IMAGES
images dissolve. Then groups merge by complete linkage. The cost of two groups is

    |X_i - X_j|^2 sqrt(h) + NAMES |U_i - U_j|^2 sqrt(g)

h is half the harmonic mean of the two numbers of images, and g is the same of summed reliabilities,
so that groups without names are compared by features alone. The number of classes is the given one,
or that of the largest mean silhouette of the features (Rousseeuw 1987). Where the number is given,
and features hardly predict names or there are fewer groups, images may begin in as many groups of
k-means instead, if these give more classes, or as many with a larger silhouette.

Letters: N images, D embedding width, T terms, K groups, n some images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.cluster.vq import kmeans2, vq
from scipy.spatial.distance import squareform

from latteclip.discover.names import (
    TINY,
    Floats,
    Ints,
    Names,
    normalised,
    predictability,
    unit_rows,
)

MAX_ROUNDS = 32
SHARPNESS = 10.0  # nats of a cosine
FREQUENCY_EXPONENT = (
    0.5  # of the logarithm of N over a term's images, in its weight
)
NAMES = 0.7  # weight of names beside features, which have a mean length of 1
MIN_IMAGES = 3
MAX_GUESS = 500  # classes, where their number is not given
MAX_GROUPS = 4_000  # merges have some tables [K, K] of float64
ROWS = 2048  # images that are scored at once
# How well features predict the names of images, at least, for names alone to form groups.
MIN_INFORMATION = 0.3
ITERATIONS = 40  # of k-means
# Images by which its centres are found, and whose silhouettes count.
SAMPLE = 5_000


@dataclass(frozen=True)
class NamedFeatures:
    """Features and names of N images."""

    features: Floats  # [N, D] whitened, centred, of mean length 1
    names: scipy.sparse.csr_matrix  # [N, T] of length 1, or 0 without a name
    # [N] the largest weight of a term: how well features predict it, from 0 to 1
    reliability: Floats
    best: Ints  # [N] the term that has it, of equal ones the more frequent; or -1
    terms: Names

    @classmethod
    def of(cls, features: Floats, terms: Names) -> "NamedFeatures":
        """Weight the names of images by how well whitened features predict them."""
        n_images, n_terms = terms.has.shape
        if not n_terms:
            nothing = np.zeros(n_images, np.float32)
            return cls(features, terms.has, nothing, np.full(n_images, -1), terms)
        rarity = np.log(n_images / terms.images) ** FREQUENCY_EXPONENT
        rated = terms.has.multiply(predictability(features, terms)).tocsr()
        reliability = rated.max(axis=1).toarray().ravel()
        best = np.where(reliability > 0, rated.argmax(axis=1).A1, -1)
        names = unit_rows(rated.multiply(rarity).tocsr()).astype(np.float32)
        return cls(features, names, reliability, best, terms)

    @property
    def is_predictable(self) -> bool:
        """Whether features predict the names of images that have one."""
        return float(self.reliability[self.best >= 0].mean()) >= MIN_INFORMATION


def groups(evidence: NamedFeatures, start: Ints) -> Ints:
    """Return groups [N] of images by names and features, beginning with some groups, -1 for none.

    Groups are numbered in the order of their first images.
    """
    labels = start
    for _ in range(MAX_ROUNDS):
        before = _large(labels)
        scored = _scores(evidence, before)
        labels = np.concatenate([scores.argmax(axis=1) for scores in scored])
        if (labels == before).all():
            break
    return _numbered(labels)


def classes(evidence: NamedFeatures, wanted: int | None) -> Ints:
    """Return classes [N] of images: a number of them, or None for the best silhouette."""
    first = groups(evidence, evidence.best)
    if not first.any():  # one group
        return first
    belongs = members(first)
    reliable = belongs.multiply(evidence.reliability[:, None]).tocsr()
    costs = _costs(belongs, evidence.features) + NAMES * _costs(
        reliable, evidence.names
    )
    np.fill_diagonal(costs, 0)
    tree = linkage(squareform(costs, checks=False), "complete")
    number = wanted or best_number(evidence.features, first, tree)
    merged = _numbered(fcluster(tree, number, "maxclust")[first])
    if wanted is None or (evidence.is_predictable and merged.max() + 1 == wanted):
        return merged
    x = evidence.features
    found = groups(evidence, k_means(x, wanted))
    return max(
        merged,
        found,
        key=lambda labels: (labels.max(), _silhouette(*_distances(x, labels))),
    )


def k_means(features: Floats, n_groups: int) -> Ints:
    """Return groups [N] by k-means of the directions of features [N, D]."""
    unit = normalised(features)
    centres, _ = kmeans2(
        unit[:: -(-len(unit) // SAMPLE)], n_groups, ITERATIONS, minit="++", rng=0
    )
    return _numbered(vq(unit, centres)[0])


def best_number(features: Floats, labels: Ints, tree: Floats) -> int:
    """Return the number of classes, from 2 to MAX_GUESS, whose mean silhouette is largest.

    `tree` merges the groups [N] in the form of scipy.
    """
    sums, sizes, labels = _distances(features, labels)

    def mean_silhouette(number: int) -> float:
        merged = fcluster(tree, number, "maxclust") - 1
        belongs = members(merged)
        return _silhouette(sums @ belongs, sizes @ belongs, merged[labels])

    return max(range(2, min(len(sizes), MAX_GUESS) + 1), key=mean_silhouette)


def _distances(features: Floats, labels: Ints) -> tuple[Floats, Floats, Ints]:
    """Return summed cosine distances [n, K] of images to groups, sizes [K], and groups [n].

    Of many images, some are compared.
    """
    some = slice(None, None, -(-len(labels) // SAMPLE))
    unit = normalised(features[some])
    belongs = np.eye(labels.max() + 1, dtype=np.float32)[labels[some]]
    sums = (1 - unit @ unit.T) @ belongs
    return sums.astype(np.float32), belongs.sum(axis=0), labels[some]


def _silhouette(sums: Floats, sizes: Floats, labels: Ints) -> float:
    """Return the mean silhouette by `_distances`. An image that is alone counts as 0."""
    rows, n_alike = np.arange(len(labels)), sizes[labels]
    inner = sums[rows, labels] / np.maximum(n_alike - 1, 1)
    means = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    means[rows, labels] = np.inf
    outer = means.min(axis=1)
    counted = (n_alike > 1) & np.isfinite(outer)
    a, b = inner[counted], outer[counted]
    return float(((b - a) / np.maximum(np.maximum(a, b), TINY)).sum() / len(rows))


def _large(labels: Ints) -> Ints:
    """Return groups [N] by their size, without those of few images. Without any, all are one."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    largest = np.argsort(-sizes, kind="stable")[:MAX_GROUPS]
    wanted = np.sort(largest[sizes[largest] >= MIN_IMAGES])
    if not len(wanted):
        return np.zeros_like(labels)
    return pd.Index(wanted).get_indexer(pd.Index(labels))  # -1: none of them


def _numbered(labels: Ints) -> Ints:
    """Return groups that all have images, numbered by the first of them."""
    numbered: Ints = pd.factorize(labels)[0]
    return numbered


def members(labels: Ints) -> scipy.sparse.csr_matrix:
    """Return which images are in which group [N, K]."""
    rows = np.flatnonzero(labels >= 0)
    ones = np.ones(len(rows), np.float32)
    return scipy.sparse.csr_matrix(
        (ones, (rows, labels[rows])), (len(labels), labels.max() + 1)
    )


def _scores(evidence: NamedFeatures, labels: Ints) -> Iterator[Floats]:
    """Yield the scores [n, K] of images in groups [N]."""
    belongs = members(labels)
    reliability = evidence.reliability[:, None]
    names = evidence.names.multiply(reliability).tocsr()
    feature_sums = np.asarray(belongs.T @ evidence.features)  # [K, D]
    name_sums = (belongs.T @ names).tocsr()  # [K, T]
    feature_means = normalised(feature_sums)
    name_means = unit_rows(name_sums)
    sizes = np.asarray(belongs.sum(axis=0)).ravel() + 1
    offset = (0.5 * np.log(sizes / sizes.sum())).astype(np.float32)
    for start in range(0, len(labels), ROWS):
        rows = slice(start, start + ROWS)
        x = evidence.features[rows]
        u = evidence.names[rows]
        r = reliability[rows]
        scores = x @ feature_means.T + r * (u @ name_means.T).toarray()
        # Of its group, an image is compared with the others.
        i = np.flatnonzero(labels[rows] >= 0)
        k = labels[rows][i]
        others = normalised(feature_sums[k] - x[i])
        names_of_others = unit_rows(name_sums[k] - names[rows][i])
        by_features = (x[i] * others).sum(axis=1)
        by_names = u[i].multiply(names_of_others).sum(axis=1)
        scores[i, k] = by_features + r[i, 0] * np.asarray(by_names).ravel()
        yield np.float32(SHARPNESS) * scores + offset


def _costs(belongs: Any, table: Any) -> Floats:
    """Return the costs [K, K] of merging groups, to which rows of a table belong [N, K]."""
    sums = scipy.sparse.csr_matrix(belongs.T @ table)
    n = np.maximum(np.asarray(belongs.sum(axis=0)).ravel(), TINY).astype(
        np.float64
    )
    pairs = np.outer(n, n)
    products = (sums @ sums.T).toarray() / pairs
    squares = products.diagonal()
    distances = np.maximum(squares[:, None] + squares - 2 * products, 0)
    return np.asarray(distances * np.sqrt(pairs / (n[:, None] + n)))
