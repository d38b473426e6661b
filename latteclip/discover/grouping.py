"""Groups of images by looks and names, and the order in which they merge.

An image begins in the group of its most reliable name. In ROUNDS rounds it goes where

    SHARPNESS (cos(x, X_k) + r cos(u, U_k)) + log n_k / 2

is largest, softly: x are whitened image features, u are weighted names, r is how well looks predict
the name, X_k and U_k are the means of group k without the image's own part. Groups of fewer than
MIN_IMAGES images dissolve. Then the two groups with the smallest cost merge, again and again:

    |X_i - X_j|^2 sqrt(h) + NAMES |U_i - U_j|^2 sqrt(g)

h is half the harmonic mean of the two numbers of images, and g is the same of summed reliabilities,
so that groups without names are compared by looks alone. The exponent is between that of Ward's
rule, which splits large groups, and the distance of means, which follows outliers. Costs are
relative to sqrt(N / 2 K) of the K groups at the beginning: those of groups of mean size at distance
1. More images of the same kinds leave them as they are.

Nothing is random. Letters: N images, D embedding width, T terms, K groups, n some images.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse

from latteclip.discover.names import (
    TINY,
    Floats,
    Ints,
    Names,
    predictability,
    weighted,
)

ROUNDS = 8
MAX_ROUNDS = 32  # while small groups dissolve
SHARPNESS = 10.0  # nats of a cosine
NAMES = 0.7  # weight of names beside looks, whose features have a mean length of 1
EXPONENT = 0.5  # of numbers of images, in the cost of a merge
MIN_IMAGES = 3
STOP = 0.65  # the relative cost above which groups are different classes
LIKELIEST = 8  # groups of an image that have a share in the means
ROWS = 2048  # images that are scored at once
MIN_SQUARE = 1e-6  # of the length of a sum
# [N, K] the shares of N images in K groups, of which each image has a few.
Shares: TypeAlias = scipy.sparse.csr_matrix


@dataclass(frozen=True)
class Evidence:
    """Looks and names of N images."""

    looks: Floats  # [N, D] whitened, centred, of mean length 1
    names: scipy.sparse.csr_matrix  # [N, T] of length 1, or 0 without a name
    reliability: Floats  # [N]
    best: Ints  # [N] the most reliable term, or -1
    terms: Names
    weights: Floats  # [T] how well looks predict each term

    @classmethod
    def of(cls, looks: Floats, terms: Names) -> "Evidence":
        """Weight the names of images by their looks."""
        weights = predictability(looks, terms)
        names, reliability, best = weighted(terms, weights)
        return cls(looks, names, reliability, best, terms, weights)

    @property
    def information(self) -> float:
        """Return how well looks predict the names of an image, from 0 to 1, on average."""
        return float(self.reliability.mean())

    def without_names(self) -> "Evidence":
        """Return the same images without names."""
        reliability = np.zeros_like(self.reliability)
        best = np.full_like(self.best, -1)
        return replace(self, names=self.names * 0, reliability=reliability, best=best)


@dataclass(frozen=True)
class Groups:
    """The groups of N images."""

    labels: Ints  # [N] the likeliest group
    confidence: Floats  # [N] its probability
    second: Ints  # [N] the second likeliest group, or the only one
    n_groups: int


def _whole_shares(labels: Ints, n_groups: int) -> Shares:
    """Return shares of 1 of the groups [N] of images, none where the group is -1."""
    rows = np.flatnonzero(labels >= 0)
    ones = np.ones(len(rows), np.float32)
    return scipy.sparse.csr_matrix((ones, (rows, labels[rows])), (len(labels), n_groups))


def group(evidence: Evidence, start: Ints | None = None) -> Groups:
    """Group images by their names and looks, beginning with the names or with groups [N]."""
    first = evidence.best if start is None else start
    has_group = first >= 0
    used, numbers = np.unique(first[has_group], return_inverse=True)
    if not len(used):
        return _one_group(len(first))
    labels = np.full(len(first), -1)
    labels[has_group] = numbers
    shares = _without_small(_whole_shares(labels, len(used)))
    for done in range(1, MAX_ROUNDS + 1):
        groups, shares = _step(evidence, shares)
        sizes = np.bincount(groups.labels, minlength=groups.n_groups)
        is_small = sizes < MIN_IMAGES
        if done < ROUNDS:
            continue
        if not is_small.any():
            break
        shares = _select(shares, ~is_small)
    return _numbered(groups)


def nearest_groups(evidence: Evidence, labels: Ints) -> tuple[Ints, Floats]:
    """Return the likeliest groups [N, k] of images, and their probabilities, by labels [N].

    An image has no part in the means with which it is compared. Each label is in use.
    """
    n_groups = int(labels.max(initial=0)) + 1
    _, shares = _step(evidence, _whole_shares(labels, n_groups))
    shape = len(labels), -1
    return shares.indices.reshape(shape), shares.data.reshape(shape)


def _one_group(n: int) -> Groups:
    zeros = np.zeros(n, np.int64)
    return Groups(zeros, np.ones(n, np.float32), zeros, 1)


def _without_small(shares: Shares) -> Shares:
    sizes = np.asarray(shares.sum(axis=0)).ravel()
    is_large = sizes >= min(MIN_IMAGES, sizes.max())
    return _select(shares, is_large)


def _select(shares: Shares, wanted: npt.NDArray[np.bool_]) -> Shares:
    """Return the shares in the wanted groups [K], or in all if none is, of sum 1 for an image."""
    if not wanted.any():
        wanted = np.ones_like(wanted)
    selected = shares[:, np.flatnonzero(wanted)].tocsr()
    sums = np.asarray(selected.sum(axis=1)).ravel()
    scale = np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)
    return scipy.sparse.diags(scale).astype(np.float32) @ selected


def _numbered(groups: Groups) -> Groups:
    """Return groups that all have images, numbered by the first of them."""
    used, first = np.unique(groups.labels, return_index=True)
    order = used[np.argsort(first)]
    number = np.full(groups.n_groups, -1)
    number[order] = np.arange(len(order))
    labels = number[groups.labels]
    second = number[groups.second]
    return replace(
        groups,
        labels=labels,
        second=np.where(second < 0, labels, second),
        n_groups=len(order),
    )


def _step(evidence: Evidence, shares: Shares) -> tuple[Groups, Shares]:
    """Return the likeliest groups by the means of some shares, and the shares that follow."""
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
    groups = Groups(
        labels=columns[:, 0],
        confidence=values[:, 0],
        second=columns[:, min(1, n_best - 1)],
        n_groups=k,
    )
    ends = np.arange(0, n * n_best + 1, n_best)
    cells = values.ravel(), columns.ravel(), ends
    return groups, scipy.sparse.csr_matrix(cells, (n, k))


def _scores(evidence: Evidence, shares: Shares) -> Iterator[tuple[slice, Floats]]:
    """Yield rows and their scores [n, K]."""
    weighted_shares = scipy.sparse.diags(evidence.reliability) @ shares
    looks = np.asarray(shares.T @ evidence.looks, np.float32)  # [K, D]
    names = (weighted_shares.T @ evidence.names).tocsr()  # [K, T]
    look_squares = (looks**2).sum(axis=1)
    name_squares = _squares(names)
    look_lengths = np.sqrt(np.maximum(look_squares, MIN_SQUARE))
    name_lengths = np.sqrt(np.maximum(name_squares, MIN_SQUARE))
    unit_looks = np.asarray(looks / look_lengths[:, None], np.float32)
    unit_names = (scipy.sparse.diags(1 / name_lengths) @ names).astype(np.float32)
    sizes = np.asarray(shares.sum(axis=0)).ravel() + 1
    offset = (0.5 * np.log(sizes / sizes.sum())).astype(np.float32)
    for start in range(0, len(evidence.looks), ROWS):
        rows = slice(start, start + ROWS)
        x = evidence.looks[rows]
        u = evidence.names[rows]
        r = evidence.reliability[rows]
        scores = x @ unit_looks.T
        by_names = (u @ unit_names.T).toarray()
        own = shares[rows].tocoo()  # few cells: elsewhere an image has no part in the mean
        i = own.row
        k = own.col
        of_looks = _without_own(
            scores[i, k] * look_lengths[k],
            (x**2).sum(axis=1)[i],
            own.data,
            look_squares[k],
        )
        of_names = _without_own(
            by_names[i, k] * name_lengths[k],
            _squares(u)[i],
            own.data * r[i],
            name_squares[k],
        )
        by_names *= r[:, None]
        scores += by_names
        scores[i, k] = of_looks + r[i] * of_names
        scores *= np.float32(SHARPNESS)
        scores += offset
        yield rows, scores


def _squares(table: scipy.sparse.csr_matrix) -> Floats:
    """Return the squared length [n] of each row of a table."""
    return np.asarray(table.multiply(table).sum(axis=1)).ravel()


def _without_own(
    products: Floats, own_squares: Floats, own: Floats, squares: Floats
) -> Floats:
    """Return products of rows with normalised sums, each without the row's own share."""
    new_squares = squares - 2 * own * products + own**2 * own_squares
    lengths = np.sqrt(np.maximum(new_squares, MIN_SQUARE))
    cosines: Floats = (products - own * own_squares) / lengths
    return cosines


@dataclass(frozen=True)
class Merge:
    """Two groups that become one: the second is taken into the first."""

    into: int
    taken: int
    cost: float  # relative


def merges(evidence: Evidence, labels: Ints, exponent: float = EXPONENT) -> list[Merge]:
    """Return the merges of K groups until one is left, in their order."""
    sums = Sums.of(evidence, labels)
    unit = (len(labels) / len(sums.sizes) / 2) ** exponent
    tree = _Tree(sums.blocks(exponent))
    return [Merge(i, j, float(cost / unit)) for i, j, cost in tree.merges()]


@dataclass(frozen=True)
class Sums:
    """The sums of K groups in looks and in names."""

    looks: Floats  # [K, D]
    names: scipy.sparse.csr_matrix  # [K, T], weighted by reliability
    sizes: npt.NDArray[np.float64]  # [K] images
    reliabilities: npt.NDArray[np.float64]  # [K]

    @classmethod
    def of(cls, evidence: Evidence, labels: Ints) -> "Sums":
        """Return the sums of images by their groups [N]."""
        n_groups = int(labels.max(initial=0)) + 1
        table = _whole_shares(labels, n_groups)
        reliable = scipy.sparse.diags(evidence.reliability) @ table
        return cls(
            looks=table.T @ evidence.looks,
            names=(reliable.T @ evidence.names).tocsr(),
            sizes=np.bincount(labels, minlength=n_groups).astype(np.float64),
            reliabilities=np.asarray(reliable.sum(axis=0), np.float64).ravel(),
        )

    def joined(self, groups: Sequence[Sequence[int]]) -> "Sums":
        """Return the sums of C sets of groups."""
        columns = list(itertools.chain(*groups))
        lengths = np.array([*map(len, groups)], np.int64)
        rows = np.repeat(np.arange(len(groups)), lengths)
        ones = np.ones(len(rows), np.float32)
        shape = len(groups), len(self.sizes)
        member = scipy.sparse.csr_matrix((ones, (rows, columns)), shape)
        return Sums(
            looks=member @ self.looks,
            names=(member @ self.names).tocsr(),
            sizes=member @ self.sizes,
            reliabilities=member @ self.reliabilities,
        )

    def blocks(self, exponent: float = EXPONENT) -> "list[Block]":
        """Return the inner products of the groups [K, K], in looks and in names."""
        names = (self.names @ self.names.T).toarray()
        looks = Block(self.looks @ self.looks.T, self.sizes, 1.0, exponent)
        return [looks, Block(names, self.reliabilities, NAMES, exponent)]


def scatter(evidence: Evidence, labels: Ints) -> float:
    """Return the mean squared distance of images from their groups, in looks and in names."""
    sums = Sums.of(evidence, labels)
    look_squares = (sums.looks**2).sum(axis=1)
    of_looks = look_squares / np.maximum(sums.sizes, TINY)
    looks = (evidence.looks**2).sum() - of_looks.sum()
    of_names = _squares(sums.names) / np.maximum(sums.reliabilities, TINY)
    names = evidence.reliability @ _squares(evidence.names) - of_names.sum()
    return float((looks + NAMES * names) / len(labels))


class Block:
    """Inner products of the sums of K groups in looks or in names, which add up in a merge."""

    def __init__(
        self,
        products: npt.ArrayLike,
        sizes: npt.NDArray[np.float64],
        weight: float,
        exponent: float,
    ) -> None:
        self.products = np.array(products, np.float64)
        self.sizes = sizes.copy()
        self.weight = weight
        self.exponent = exponent

    def costs(self, i: int) -> npt.NDArray[np.float64]:
        """Return the cost of merging group i with each [K]."""
        n = np.maximum(self.sizes, TINY)
        squares = self.products.diagonal() / n**2
        products = self.products[i] / (n * n[i])
        distances = np.maximum(squares + squares[i] - 2 * products, 0)
        both = np.maximum(self.sizes + self.sizes[i], TINY)
        halves = self.sizes * self.sizes[i] / both
        costs: npt.NDArray[np.float64] = self.weight * distances * halves**self.exponent
        return costs

    def cosines(self) -> npt.NDArray[np.float64]:
        """Return the cosines [K, K] of the sums, 0 of a group without a name."""
        lengths = np.sqrt(np.maximum(self.products.diagonal(), MIN_SQUARE))
        cosines: npt.NDArray[np.float64] = self.products / lengths / lengths[:, None]
        return cosines

    def merge(self, i: int, j: int) -> None:
        self.products[i] += self.products[j]
        self.products[:, i] += self.products[:, j]
        self.sizes[i] += self.sizes[j]


class _Tree:
    """Groups that merge by the smallest cost, with the best partner of each."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        k = len(blocks[0].sizes)
        self.alive = np.ones(k, bool)
        self.costs = np.stack([self._costs(i) for i in range(k)])
        self.partner = self.costs.argmin(axis=1)
        self.best = self.costs.min(axis=1)

    def _costs(self, i: int) -> npt.NDArray[np.float64]:
        costs = sum(block.costs(i) for block in self.blocks)
        result = np.where(self.alive, costs, np.inf)
        result[i] = np.inf
        return result

    def merges(self) -> Iterator[tuple[int, int, float]]:
        """Yield the two groups of each merge, and its cost."""
        for _ in range(len(self.best) - 1):
            nearest = int(self.best.argmin())
            cost = float(self.best[nearest])
            i, j = sorted((nearest, int(self.partner[nearest])))
            for block in self.blocks:
                block.merge(i, j)
            self.alive[j] = False
            self.costs[j] = np.inf
            self.costs[:, j] = np.inf
            self.costs[i] = self._costs(i)
            self.costs[:, i] = self.costs[i]
            self.best[j] = np.inf
            changed = self.alive & ((self.partner == i) | (self.partner == j))
            changed[i] = True
            for row in np.flatnonzero(changed):
                self.partner[row] = self.costs[row].argmin()
                self.best[row] = self.costs[row, self.partner[row]]
            closer = self.alive & (self.costs[:, i] < self.best)
            self.partner[closer] = i
            self.best[closer] = self.costs[closer, i]
            yield i, j, cost


def suggested_number(steps: list[Merge], n_groups: int, least: int = 2) -> int:
    """Return the number of classes after the merges before the first that costs more than STOP."""
    n_merged = len(list(itertools.takewhile(lambda step: step.cost <= STOP, steps)))
    return max(min(least, n_groups), n_groups - n_merged)


def cut(steps: list[Merge], n_groups: int, n_classes: int) -> Ints:
    """Return the class [K] of each group after as many merges as leave `n_classes`."""
    owner = np.arange(n_groups)
    for step in steps[: max(0, n_groups - n_classes)]:
        owner[owner == step.taken] = step.into
    numbers: Ints = np.unique(owner, return_inverse=True)[1].astype(np.int64)
    return numbers
