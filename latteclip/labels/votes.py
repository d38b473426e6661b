"""Read features, and votes and answers into tables of classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
Ints = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
NO_VOTE = -1  # in place of the class
ZERO_SHOT = "zero_shot"  # the name of the class texts among the labellers
CELLS = 2**22  # entries of the largest table of a part of the rows


def feature_arrays(features: Floats | Sequence[Floats] | None) -> list[Floats]:
    """Return the features [N, D] of each encoder, or raise ValueError."""
    if features is None:
        return []
    each = features if isinstance(features, list | tuple) else [features]
    encoders = [np.asarray(one) for one in each]
    for one in encoders:
        if one.ndim != 2 or not np.isfinite(one.sum(dtype=np.float64)):
            raise ValueError(
                "Image features are finite numbers [N, D], or a list of such arrays."
            )
    return encoders


@dataclass(frozen=True)
class Votes:
    """The options of N images by one labeller, and their probabilities."""

    options: Ints  # [N, K], NO_VOTE where there is none
    shares: Floats  # [N, K] of sum 1, or 0 where the labeller is silent

    @classmethod
    def of(cls, table: Any) -> "Votes":
        """Read classes [N], probabilities [N, C], or a pair of options and shares [N, K].

        Raises ValueError for anything else.
        """
        if isinstance(table, cls):
            return table
        if isinstance(table, tuple):
            options, shares = (np.asarray(one) for one in table)
        elif (array := np.asarray(table)).ndim == 2:
            options = np.broadcast_to(np.arange(array.shape[1]), array.shape)
            shares = array
        else:
            options = array[..., None]
            shares = np.ones((*array.shape, 1), np.float32)
        is_table = options.shape == shares.shape and options.ndim == 2
        if (
            not is_table
            or options.dtype.kind not in "iub"
            or options.min(initial=0) < NO_VOTE
            or not ((shares >= 0) & (shares < np.inf)).all()
        ):
            raise ValueError(
                "Votes are numbers of classes [N], -1 for none, or probabilities [N, C] that are "
                "not below 0. Ranked classes [N, K] are given as a pair of numbers of classes and "
                "probabilities."
            )
        shares = np.where(options >= 0, shares, 0).astype(np.float32)
        total = shares.sum(axis=1, keepdims=True)
        return cls(options, shares / np.maximum(total, 1e-12))

    def __len__(self) -> int:
        return len(self.options)

    @property
    def has(self) -> Bools:
        """Return whether the labeller names a class [N]."""
        return np.asarray(self.shares.any(axis=1))

    @property
    def first(self) -> Ints:
        """Return the first choices [N], NO_VOTE where there is none."""
        best = self.options[np.arange(len(self)), self.shares.argmax(axis=1)]
        return np.where(self.has, best, NO_VOTE)

    def dense(self, rows: Any, n_classes: int) -> Floats:
        """Return probabilities [n, C] of some rows."""
        options = np.maximum(self.options[rows], 0)
        table = np.zeros((len(options), n_classes), dtype=np.float32)
        np.add.at(
            table, (np.arange(len(options))[:, None], options), self.shares[rows]
        )
        return table


@dataclass(frozen=True)
class Answers:
    """A person's answers about A images."""

    rows: Ints  # [A]
    # [A, C] share of each class, several where the person allows several; 0: none of the classes
    shares: Floats
    drawn: Bools  # [A] whether the image was drawn at random, to check labels
    # Further images whose class the person could not tell: of those that were chosen, and drawn.
    unsure_chosen: int = 0
    unsure_drawn: int = 0

    @classmethod
    def of(cls, answers: Any, n_classes: int) -> "Answers":
        """Read a mapping of rows to a class or to several, or return answers as they are.

        Raises ValueError for a class that is not there.
        """
        if isinstance(answers, cls):
            return answers
        given: Mapping[int, Any] = answers or {}
        if not all(isinstance(row, int | np.integer) for row in given):
            raise ValueError(
                f"Answers are a mapping of rows to classes, and {[*given][:3]} are no rows."
            )
        shares = np.zeros((len(given), n_classes))
        for place, (row, classes) in enumerate(given.items()):
            if np.setdiff1d(classes, np.arange(n_classes)).size:
                raise ValueError(
                    f"The answer about row {row} is {classes}, and classes are from 0 to "
                    f"{n_classes - 1}; set n_classes if there are more."
                )
            shares[place, classes] = 1
        rows = np.array(list(given), dtype=np.int64)
        return cls(rows, shares, np.zeros(len(rows), dtype=bool))

    def select(self, mask: Bools) -> "Answers":
        """Return some of the answers."""
        return Answers(self.rows[mask], self.shares[mask], self.drawn[mask])

    def within(self, rows: Ints) -> "Answers":
        """Return the answers about some rows, sorted, by their places among these."""
        place = np.searchsorted(rows, self.rows)
        is_in = (place < len(rows)) & (
            rows[np.minimum(place, len(rows) - 1)] == self.rows
        )
        return Answers(place[is_in], self.shares[is_in], self.drawn[is_in])


def count_classes(
    votes: Mapping[str, Votes],
    texts: Floats | None,
    answers: Any,
    given: int | None,
) -> int:
    """Return the number of classes: the given one, or that of the inputs.

    Raises ValueError where votes alone ask for a table of classes by classes above CELLS.
    """
    if given is not None:
        return given
    if texts is not None:
        return len(texts)
    if isinstance(answers, Answers):
        return int(answers.shares.shape[1])
    c = max(
        (int(one.options.max(initial=0)) + 1 for one in votes.values()), default=0
    )
    n = max(map(len, votes.values()), default=0)
    if c > n and c * c > CELLS:
        raise ValueError(
            f"Votes about {n} images name class {c - 1}; number the classes from 0, or set "
            "n_classes if there are so many."
        )
    return c


def parts(n: int, n_classes: int) -> Iterator[slice]:
    """Return n rows in parts of at most CELLS entries of classes."""
    step = max(1, CELLS // max(1, n_classes))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def spaced(n: int, most: int, always: Sequence[int] | Ints) -> Ints:
    """Return at most so many of n rows, evenly spaced, and some that are always among them."""
    if n <= most:
        return np.arange(n)
    return np.union1d(np.arange(most) * n // most, always).astype(np.int64)


def softmax(table: Floats) -> Floats:
    """Return probabilities [n, C] by scores."""
    shares = np.exp(table - table.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def log(table: Floats) -> Floats:
    """Return logarithms that are finite."""
    return np.asarray(np.log(np.maximum(table, 1e-12)))


def normalised(table: Floats) -> Floats:
    """Return rows of sum 1; rows of 0 stay."""
    return np.asarray(table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12))


def tempered(table: Floats, power: float) -> Floats:
    """Return probabilities [n, C], raised to a power; rows of 0 stay."""
    return normalised(table ** np.float32(power))


def first(table: Floats) -> Floats:
    """Return the largest entry of each row as a row of one 1; rows of 0 stay."""
    named = np.zeros_like(table)
    named[np.arange(len(table)), table.argmax(axis=1)] = 1
    return np.asarray(named * (table.sum(axis=1, keepdims=True) > 0))


def agreement(one: Floats, other: Floats) -> float:
    """Return the agreement of two tables [n, C] beyond chance, as a share of what is possible."""
    chance = one.mean(axis=0) @ other.mean(axis=0)
    shared = (one * other).sum(axis=1).mean()
    return float(max(0.0, (shared - chance) / max(1 - chance, 1e-3)))
