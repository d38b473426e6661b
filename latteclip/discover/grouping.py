"""Groups of images by features and names, and the order in which they merge.

An image begins in the group of its most reliable name. In ROUNDS rounds it goes where

    SHARPNESS (cos(x, X_k) + r cos(u, U_k)) + log n_k / 2

is largest, softly: x are whitened image features, u are weighted names, r is how well features
predict the name, X_k and U_k are the means of group k without the image's own part. Groups of fewer
than MIN_IMAGES images dissolve. Then the two groups with the smallest cost merge, again and again:

    |X_i - X_j|^2 sqrt(h) + NAMES |U_i - U_j|^2 sqrt(g)

h is half the harmonic mean of the two numbers of images, and g is the same of summed reliabilities,
so that groups without names are compared by features alone. Costs are relative to sqrt(N / 2 K) of
the K groups at the beginning. More images of the same kinds leave them as they are.

Where features hardly predict names, k-means of the features replaces the names as the start. Then
nothing merges.

Letters: N images, D embedding width, T terms, K groups, n some images.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.cluster.vq import kmeans2, vq

from latteclip.discover.names import (
    TINY,
    Floats,
    Ints,
    Names,
    normalised,
    predictability,
    weighted,
)

ROUNDS = 8
MAX_ROUNDS = 32  # while small groups dissolve
SHARPNESS = 10.0  # nats of a cosine
NAMES = 0.7  # weight of names beside features, which have a mean length of 1
MIN_IMAGES = 3
MAX_GROUPS = 4_000  # merges have three tables [K, K] of float64
STOP = 0.65  # the relative cost above which groups are different classes
LIKELIEST = 8  # groups of an image that have a share in the means
ROWS = 2048  # images that are scored at once
MIN_SQUARE = 1e-6  # of the length of a sum
# How well features predict the names of images, at least, for names alone to form groups.
MIN_INFORMATION = 0.3
ITERATIONS = 40  # of k-means
SAMPLE = 20_000  # images by which its centres are found
# [N, K] the shares of N images in K groups, of which each image has a few.
Shares: TypeAlias = scipy.sparse.csr_matrix


@dataclass(frozen=True)
class Evidence:
    """Features and names of N images."""

    features: Floats  # [N, D] whitened, centred, of mean length 1
    names: scipy.sparse.csr_matrix  # [N, T] of length 1, or 0 without a name
    reliability: Floats  # [N] how well features predict the name, from 0 to 1
    best: Ints  # [N] the most reliable term, or -1
    terms: Names

    @classmethod
    def of(cls, features: Floats, terms: Names) -> "Evidence":
        """Weight the names of images by how well whitened features predict them."""
        names, reliability, best = weighted(terms, predictability(features, terms))
        return cls(features, names, reliability, best, terms)

    @property
    def is_predictable(self) -> bool:
        """Whether features predict the names of images, if any has a name."""
        of_named = self.reliability[self.best >= 0]
        return not len(of_named) or float(of_named.mean()) >= MIN_INFORMATION


def groups(evidence: Evidence, start: Ints) -> Ints:
    """Return groups [N] of images by names and features, beginning with some groups, -1 for none.

    Groups are numbered in the order of their first images.
    """
    has_group = start >= 0
    used, numbers = np.unique(start[has_group], return_inverse=True)
    if not len(used):
        return np.zeros(len(start), np.int64)
    labels = np.full(len(start), -1)
    labels[has_group] = numbers
    shares = _without_small(_whole_shares(labels, len(used)))
    for done in range(1, MAX_ROUNDS + 1):
        shares = _step(evidence, shares)
        labels = _likeliest(shares)
        sizes = np.bincount(labels, minlength=shares.shape[1])
        is_small = sizes < MIN_IMAGES
        if done < ROUNDS:
            continue
        if not is_small.any():
            break
        shares = _select(shares, ~is_small)
    return _numbered(labels)


def by_features(evidence: Evidence, n_groups: int) -> Ints:
    """Return groups [N] by features and names that begin with k-means of the features."""
    start = k_means(evidence.features, n_groups)
    found = groups(evidence, start)
    return found if found.max() == start.max() else start  # no small group dissolved


def k_means(features: Floats, n_groups: int) -> Ints:
    """Return groups [N] by k-means of the directions of features [N, D]."""
    unit = normalised(features)
    sample = unit[:: -(-len(unit) // SAMPLE)]
    centres, _ = kmeans2(sample, _spread(sample, n_groups), ITERATIONS, minit="matrix")
    return _numbered(vq(unit, centres)[0])


def _spread(unit: Floats, n: int) -> Floats:
    """Return n of some rows of length 1, drawn by their distance to those before (k-means++)."""
    rng = np.random.default_rng(0)
    rows = [int(rng.integers(len(unit)))]
    distances = np.full(len(unit), np.inf)
    for _ in range(n - 1):
        to_last = np.maximum(1 - unit @ unit[rows[-1]], TINY).astype(np.float64)
        distances = np.minimum(distances, to_last)
        rows.append(int(rng.choice(len(unit), p=distances / distances.sum())))
    return unit[rows]


def confidences(evidence: Evidence, labels: Ints) -> Floats:
    """Return the probability [N] of the groups [N] of images, each of which is in use.

    An image has no part in the means with which it is compared.
    """
    shares = _step(evidence, _whole_shares(labels, int(labels.max(initial=0)) + 1))
    rows = np.repeat(np.arange(len(labels)), np.diff(shares.indptr))
    of_label = shares.data * (shares.indices == labels[rows])
    return np.bincount(rows, of_label, minlength=len(labels)).astype(np.float32)


def _whole_shares(labels: Ints, n_groups: int) -> Shares:
    """Return shares of 1 of the groups [N] of images, none where the group is -1."""
    rows = np.flatnonzero(labels >= 0)
    ones = np.ones(len(rows), np.float32)
    return scipy.sparse.csr_matrix((ones, (rows, labels[rows])), (len(labels), n_groups))


def _without_small(shares: Shares) -> Shares:
    """Return the shares in the groups of MIN_IMAGES or more, at most MAX_GROUPS of them."""
    sizes = np.asarray(shares.sum(axis=0)).ravel()
    is_large = sizes >= min(MIN_IMAGES, sizes.max())
    largest = np.argsort(-sizes, kind="stable")[:MAX_GROUPS]
    return _select(shares, is_large & np.isin(np.arange(len(sizes)), largest))


def _select(shares: Shares, wanted: npt.NDArray[np.bool_]) -> Shares:
    """Return the shares in the wanted groups [K], or in all if none is, of sum 1 for an image."""
    if not wanted.any():
        wanted = np.ones_like(wanted)
    selected = shares[:, np.flatnonzero(wanted)].tocsr()
    sums = np.asarray(selected.sum(axis=1)).ravel()
    scale = np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)
    return scipy.sparse.diags(scale).astype(np.float32) @ selected


def _numbered(labels: Ints) -> Ints:
    """Return groups that all have images, numbered by the first of them."""
    _, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
    numbered: Ints = np.argsort(np.argsort(first))[numbers].astype(np.int64)
    return numbered


def _likeliest(shares: Shares) -> Ints:
    """Return the group [N] with the largest share, which is the first that `_step` stores."""
    labels: Ints = shares.indices[shares.indptr[:-1]].astype(np.int64)
    return labels


def _step(evidence: Evidence, shares: Shares) -> Shares:
    """Return the shares that follow from the means of some shares, the largest first."""
    n, k = shares.shape
    n_best = min(LIKELIEST, k)
    columns = np.empty((n, n_best), np.int64)
    values = np.empty((n, n_best), np.float32)
    for rows, scores in _scores(evidence, shares):
        best = np.argpartition(-scores, n_best - 1, axis=1)[:, :n_best]
        of_best = np.take_along_axis(scores, best, axis=1)
        order = np.lexsort((best, -of_best), axis=1)
        columns[rows] = np.take_along_axis(best, order, axis=1)
        ordered = np.take_along_axis(of_best, order, axis=1)
        likelihoods = np.exp(ordered - ordered[:, :1])
        values[rows] = likelihoods / likelihoods.sum(axis=1, keepdims=True)
    ends = np.arange(0, n * n_best + 1, n_best)
    return scipy.sparse.csr_matrix((values.ravel(), columns.ravel(), ends), (n, k))


def _scores(evidence: Evidence, shares: Shares) -> Iterator[tuple[slice, Floats]]:
    """Yield rows and their scores [n, K]."""
    weighted_shares = scipy.sparse.diags(evidence.reliability) @ shares
    features = np.asarray(shares.T @ evidence.features, np.float32)  # [K, D]
    names = (weighted_shares.T @ evidence.names).tocsr()  # [K, T]
    feature_squares = (features**2).sum(axis=1)
    name_squares = _squares(names)
    feature_lengths = np.sqrt(np.maximum(feature_squares, MIN_SQUARE))
    name_lengths = np.sqrt(np.maximum(name_squares, MIN_SQUARE))
    unit_features = np.asarray(features / feature_lengths[:, None], np.float32)
    unit_names = (scipy.sparse.diags(1 / name_lengths) @ names).astype(np.float32)
    sizes = np.asarray(shares.sum(axis=0)).ravel() + 1
    offset = (0.5 * np.log(sizes / sizes.sum())).astype(np.float32)
    for start in range(0, len(evidence.features), ROWS):
        rows = slice(start, start + ROWS)
        x = evidence.features[rows]
        u = evidence.names[rows]
        r = evidence.reliability[rows]
        scores = x @ unit_features.T
        by_names = (u @ unit_names.T).toarray()
        # Few cells: elsewhere an image has no part in the mean.
        cells = shares[rows].tocoo()
        i = cells.row
        k = cells.col
        of_features = _without_row(
            scores[i, k] * feature_lengths[k],
            (x**2).sum(axis=1)[i],
            cells.data,
            feature_squares[k],
        )
        of_names = _without_row(
            by_names[i, k] * name_lengths[k],
            _squares(u)[i],
            cells.data * r[i],
            name_squares[k],
        )
        by_names *= r[:, None]
        scores += by_names
        scores[i, k] = of_features + r[i] * of_names
        scores *= np.float32(SHARPNESS)
        scores += offset
        yield rows, scores


def _squares(table: scipy.sparse.csr_matrix) -> Floats:
    """Return the squared length [n] of each row of a table."""
    return np.asarray(table.multiply(table).sum(axis=1)).ravel()


def _without_row(
    products: Floats, row_squares: Floats, share: Floats, squares: Floats
) -> Floats:
    """Return products of rows with normalised sums, each without the row's own share."""
    new_squares = squares - 2 * share * products + share**2 * row_squares
    lengths = np.sqrt(np.maximum(new_squares, MIN_SQUARE))
    cosines: Floats = (products - share * row_squares) / lengths
    return cosines


@dataclass(frozen=True)
class Merge:
    """Two groups that become one: the second is taken into the first."""

    into: int
    taken: int
    cost: float  # relative


def merges(evidence: Evidence, labels: Ints) -> list[Merge]:
    """Return the merges of K groups until one is left, in their order."""
    features, names = _sums(evidence, labels)
    unit = math.sqrt(len(labels) / len(features.sizes) / 2)
    return [Merge(i, j, cost / unit) for i, j, cost in _cheapest(features, names)]


class GroupSums:
    """Sums of K groups in features or in names, as inner products that add up in a merge."""

    def __init__(self, sums: Any, sizes: Floats, weight: float) -> None:
        products = sums @ sums.T
        is_sparse = scipy.sparse.issparse(products)
        self.products = np.array(products.toarray() if is_sparse else products, np.float64)
        self.sizes = sizes.astype(np.float64)
        self.weight = weight

    def costs(self, i: int) -> npt.NDArray[np.float64]:
        """Return the cost of merging group i with each [K]."""
        n = np.maximum(self.sizes, TINY)
        squares = self.products.diagonal() / n**2
        products = self.products[i] / (n * n[i])
        distances = np.maximum(squares + squares[i] - 2 * products, 0)
        both = np.maximum(self.sizes + self.sizes[i], TINY)
        halves = self.sizes * self.sizes[i] / both
        costs: npt.NDArray[np.float64] = self.weight * distances * np.sqrt(halves)
        return costs

    def merge(self, i: int, j: int) -> None:
        self.products[i] += self.products[j]
        self.products[:, i] += self.products[:, j]
        self.sizes[i] += self.sizes[j]


def _sums(evidence: Evidence, labels: Ints) -> tuple[GroupSums, GroupSums]:
    """Return the sums of groups [N] in features, and in names."""
    members = _whole_shares(labels, int(labels.max(initial=0)) + 1)
    reliable = scipy.sparse.diags(evidence.reliability) @ members
    sizes = np.asarray(members.sum(axis=0)).ravel()
    reliabilities = np.asarray(reliable.sum(axis=0)).ravel()
    return (
        GroupSums(members.T @ evidence.features, sizes, 1.0),
        GroupSums((reliable.T @ evidence.names).tocsr(), reliabilities, NAMES),
    )


def _cheapest(*parts: GroupSums) -> Iterator[tuple[int, int, float]]:
    """Yield the two groups of each merge by the smallest cost, and the cost."""
    k = len(parts[0].sizes)
    costs = np.stack([sum(part.costs(i) for part in parts) for i in range(k)])
    np.fill_diagonal(costs, np.inf)
    for _ in range(k - 1):
        pair = divmod(int(costs.argmin()), k)
        i, j = sorted(pair)
        yield i, j, float(costs[pair])
        for part in parts:
            part.merge(i, j)
        costs[j] = np.inf
        costs[:, j] = np.inf
        row = sum(part.costs(i) for part in parts)
        costs[i] = np.where(np.isinf(costs[i]), np.inf, row)  # itself, and merged groups
        costs[:, i] = costs[i]


def suggested_number(steps: list[Merge]) -> int:
    """Return the number of groups after the merges before the first that costs more than STOP."""
    n_merged = len(list(itertools.takewhile(lambda step: step.cost <= STOP, steps)))
    n_groups = len(steps) + 1
    return max(min(2, n_groups), n_groups - n_merged)


def cut(steps: list[Merge], labels: Ints, n_classes: int) -> Ints:
    """Return classes [N] after as many merges of groups [N] as leave `n_classes`."""
    n_groups = len(steps) + 1
    owner = np.arange(n_groups)
    for step in steps[: max(0, n_groups - n_classes)]:
        owner[owner == step.taken] = step.into
    return _numbered(owner[labels])
