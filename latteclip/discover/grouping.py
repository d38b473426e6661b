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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse

from latteclip.discover.names import Names, predictability, weighted

ROUNDS = 8
SHARPNESS = 10.0  # nats of a cosine
NAMES = 0.7  # weight of names beside looks, whose features have a mean length of 1
EXPONENT = 0.5  # of numbers of images, in the cost of a merge
MIN_IMAGES = 3
STOP = 0.65  # the relative cost above which groups are different classes
KEPT = 8  # groups of an image that have a share in the means
ROWS = 2048  # images that are scored at once
TINY = 1e-9
LEAST = 1e-6  # squared length of a sum, at least
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


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
        return cls(looks, *weighted(terms, weights), terms, weights)

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


@dataclass(frozen=True)
class _Shares:
    """The shares of N images in K groups, of which each has a few."""

    table: scipy.sparse.csr_matrix  # [N, K]

    @classmethod
    def of_labels(cls, labels: Ints, n_groups: int) -> "_Shares":
        rows = np.flatnonzero(labels >= 0)
        cells = np.ones(len(rows), np.float32), (rows, labels[rows])
        return cls(scipy.sparse.csr_matrix(cells, (len(labels), n_groups)))


def group(evidence: Evidence, rounds: int = ROUNDS, *, start: Ints | None = None) -> Groups:
    """Group images by their names and looks, beginning with the names or with groups [N]."""
    first = evidence.best if start is None else start
    used, numbers = np.unique(first[first >= 0], return_inverse=True)
    labels = np.full(len(first), -1)
    labels[first >= 0] = numbers
    if not len(used):
        return _one_group(len(labels))
    shares = _without_small(_Shares.of_labels(labels, len(used)))
    for done in range(4 * rounds):
        groups, shares = _step(evidence, shares)
        sizes = np.bincount(groups.labels, minlength=groups.n_groups)
        is_small = sizes < MIN_IMAGES
        if done + 1 >= rounds and not is_small.any():
            break
        if done + 1 >= rounds:
            shares = _select(shares, ~is_small)
    return _numbered(groups)


def nearest_groups(evidence: Evidence, labels: Ints) -> tuple[Ints, Floats]:
    """Return the likeliest groups [N, k] of images, and their probabilities, by labels [N].

    An image has no part in the means with which it is compared. Each label is in use.
    """
    shares = _Shares.of_labels(labels, int(labels.max(initial=0)) + 1)
    _, shares = _step(evidence, shares)
    table = shares.table
    shape = len(labels), -1
    return table.indices.reshape(shape), table.data.reshape(shape)


def _one_group(n: int) -> Groups:
    zeros = np.zeros(n, np.int64)
    return Groups(zeros, np.ones(n, np.float32), zeros, 1)


def _without_small(shares: _Shares) -> _Shares:
    sizes = np.asarray(shares.table.sum(axis=0)).ravel()
    keep = sizes >= min(MIN_IMAGES, sizes.max())
    return _select(shares, keep)


def _select(shares: _Shares, keep: npt.NDArray[np.bool_]) -> _Shares:
    if not keep.any():
        keep = np.ones_like(keep)
    table = shares.table[:, np.flatnonzero(keep)].tocsr()
    sums = np.asarray(table.sum(axis=1)).ravel()
    scale = np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)
    return _Shares(scipy.sparse.diags(scale).astype(np.float32) @ table)


def _numbered(groups: Groups) -> Groups:
    """Return groups that all have images, numbered by the first of them."""
    used, first = np.unique(groups.labels, return_index=True)
    order = used[np.argsort(first)]
    number = np.full(groups.n_groups, -1)
    number[order] = np.arange(len(order))
    labels, second = number[groups.labels], number[groups.second]
    return replace(
        groups,
        labels=labels,
        second=np.where(second < 0, labels, second),
        n_groups=len(order),
    )


def _step(evidence: Evidence, shares: _Shares) -> tuple[Groups, _Shares]:
    """Return the likeliest groups by the means of some shares, and the shares that follow."""
    n, k = shares.table.shape
    kept = min(KEPT, k)
    columns, values = np.empty((n, kept), np.int64), np.empty((n, kept), np.float32)
    for rows, scores in _scores(evidence, shares.table):
        best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
        top = np.take_along_axis(scores, best, axis=1)
        order = np.lexsort((best, -top), axis=1)
        columns[rows] = np.take_along_axis(best, order, axis=1)
        top = np.take_along_axis(top, order, axis=1)
        top = np.exp(top - top[:, :1])
        values[rows] = top / top.sum(axis=1, keepdims=True)
    cells = values.ravel(), columns.ravel(), np.arange(0, n * kept + 1, kept)
    groups = Groups(columns[:, 0], values[:, 0], columns[:, min(1, kept - 1)], k)
    return groups, _Shares(scipy.sparse.csr_matrix(cells, (n, k)))


def _scores(
    evidence: Evidence, shares: scipy.sparse.csr_matrix
) -> Iterator[tuple[slice, Floats]]:
    """Yield rows and their scores [n, K]."""
    weighted_shares = scipy.sparse.diags(evidence.reliability) @ shares
    looks = np.asarray(shares.T @ evidence.looks, np.float32)  # [K, D]
    names = (weighted_shares.T @ evidence.names).tocsr()  # [K, T]
    look_squares = (looks**2).sum(axis=1)
    name_squares = np.asarray(names.multiply(names).sum(axis=1)).ravel()
    look_lengths = np.sqrt(np.maximum(look_squares, LEAST))
    name_lengths = np.sqrt(np.maximum(name_squares, LEAST))
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
        i, k = own.row, own.col
        of_looks = _without_own(
            scores[i, k] * look_lengths[k],
            (x**2).sum(axis=1)[i],
            own.data,
            look_squares[k],
        )
        of_names = _without_own(
            by_names[i, k] * name_lengths[k],
            np.asarray(u.multiply(u).sum(axis=1)).ravel()[i],
            own.data * r[i],
            name_squares[k],
        )
        by_names *= r[:, None]
        scores += by_names
        scores[i, k] = of_looks + r[i] * of_names
        scores *= np.float32(SHARPNESS)
        scores += offset
        yield rows, scores


def _without_own(
    products: Floats, own_squares: Floats, own: Floats, squares: Floats
) -> Floats:
    """Return products of rows with normalised sums, each without the row's own share."""
    lengths = squares - 2 * own * products + own**2 * own_squares
    cosines: Floats = (products - own * own_squares) / np.sqrt(np.maximum(lengths, LEAST))
    return cosines


@dataclass(frozen=True)
class Merge:
    """Two groups that become one: the second is taken into the first."""

    into: int
    taken: int
    cost: float  # relative


def merges(evidence: Evidence, labels: Ints, exponent: float = EXPONENT) -> list[Merge]:
    """Return the merges of K groups until one is left, in their order."""
    tree = _Tree(Sums.of(evidence, labels).blocks(exponent))
    unit = (len(labels) / len(tree.best) / 2) ** exponent
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
        table = _Shares.of_labels(labels, n_groups).table
        reliable = scipy.sparse.diags(evidence.reliability) @ table
        return cls(
            table.T @ evidence.looks,
            (reliable.T @ evidence.names).tocsr(),
            np.bincount(labels, minlength=n_groups).astype(np.float64),
            np.asarray(reliable.sum(axis=0), np.float64).ravel(),
        )

    def joined(self, groups: Sequence[Sequence[int]]) -> "Sums":
        """Return the sums of C sets of groups."""
        columns = [number for one in groups for number in one]
        lengths = np.array([len(one) for one in groups], np.int64)
        rows = np.repeat(np.arange(len(groups)), lengths)
        cells = np.ones(len(rows), np.float32), (rows, columns)
        member = scipy.sparse.csr_matrix(cells, (len(groups), len(self.sizes)))
        return Sums(
            member @ self.looks,
            (member @ self.names).tocsr(),
            member @ self.sizes,
            member @ self.reliabilities,
        )

    def blocks(self, exponent: float = EXPONENT) -> "list[Block]":
        """Return the inner products of the groups [K, K], in looks and in names."""
        names = (self.names @ self.names.T).toarray()
        looks = Block(self.looks @ self.looks.T, self.sizes, 1.0, exponent)
        return [looks, Block(names, self.reliabilities, NAMES, exponent)]


def scatter(evidence: Evidence, labels: Ints) -> float:
    """Return the mean squared distance of images from their groups, in looks and in names."""
    sums = Sums.of(evidence, labels)
    squares = (sums.looks**2).sum(axis=1) / np.maximum(sums.sizes, TINY)
    looks = (evidence.looks**2).sum() - squares.sum()
    lengths = np.asarray(sums.names.multiply(sums.names).sum(axis=1)).ravel()
    means = lengths / np.maximum(sums.reliabilities, TINY)
    own = np.asarray(evidence.names.multiply(evidence.names).sum(axis=1)).ravel()
    names = evidence.reliability @ own - means.sum()
    return float((looks + NAMES * names) / len(labels))


class Block:
    """Inner products of the sums of K groups in looks or in names, which add up in a merge."""

    def __init__(
        self,
        products: npt.ArrayLike,
        sizes: npt.NDArray[np.float64],
        weight: float,
        exponent: float,
    ):
        self.products, self.sizes = np.array(products, np.float64), sizes.copy()
        self.weight, self.exponent = weight, exponent

    def costs(self, i: int) -> npt.NDArray[np.float64]:
        """Return the cost of merging group i with each [K]."""
        n = np.maximum(self.sizes, TINY)
        squares = self.products.diagonal() / n**2
        distances = squares + squares[i] - 2 * self.products[i] / (n * n[i])
        halves = self.sizes * self.sizes[i] / np.maximum(self.sizes + self.sizes[i], TINY)
        costs: npt.NDArray[np.float64] = (
            self.weight * np.maximum(distances, 0) * halves**self.exponent
        )
        return costs

    def cosines(self) -> npt.NDArray[np.float64]:
        """Return the cosines [K, K] of the sums, 0 of a group without a name."""
        lengths = np.sqrt(np.maximum(self.products.diagonal(), LEAST))
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
            i = int(self.best.argmin())
            j = int(self.partner[i])
            i, j, cost = min(i, j), max(i, j), float(self.best[i])
            for block in self.blocks:
                block.merge(i, j)
            self.alive[j] = False
            self.costs[j] = self.costs[:, j] = np.inf
            self.costs[i] = self.costs[:, i] = self._costs(i)
            self.best[j] = np.inf
            changed = self.alive & ((self.partner == i) | (self.partner == j))
            changed[i] = True
            for row in np.flatnonzero(changed):
                self.partner[row] = self.costs[row].argmin()
                self.best[row] = self.costs[row, self.partner[row]]
            closer = self.alive & (self.costs[:, i] < self.best)
            self.partner[closer], self.best[closer] = i, self.costs[closer, i]
            yield i, j, cost


def suggested_number(steps: list[Merge], n_groups: int, least: int = 2) -> int:
    """Return the number of classes after the merges before the first that costs more than STOP."""
    n_merged = next(
        (place for place, step in enumerate(steps) if step.cost > STOP), len(steps)
    )
    return max(min(least, n_groups), n_groups - n_merged)


def cut(steps: list[Merge], n_groups: int, n_classes: int) -> Ints:
    """Return the class [K] of each group after as many merges as leave `n_classes`."""
    owner = np.arange(n_groups)
    for step in steps[: max(0, n_groups - n_classes)]:
        owner[owner == step.taken] = step.into
    numbers: Ints = np.unique(owner, return_inverse=True)[1].astype(np.int64)
    return numbers
