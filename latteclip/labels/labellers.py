"""Learn of a labeller how it confuses classes, what its lists say, and how right it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latteclip.labels.guarantees import Interval, share_right
from latteclip.labels.image_classes import TINY, class_sums
from latteclip.labels.votes import (
    Answers,
    Bools,
    Floats,
    Ints,
    agreement,
    first,
    log,
    normalised,
    softmax,
    tempered,
)

# Votes of a class that its prior is worth, and more where it has fewer votes.
ENOUGH = 25.0
# Images, or votes, below which nothing is compared.
FEW = 10
MEANT = (0.98, 0.7, 0.5, 0.3)  # shares of votes that are not random, to begin with
POWERS = 2.0 ** np.arange(
    -5, 3
)  # of probabilities that are too sure, or not sure enough
MIN_DRAWN = 20  # answers that state an accuracy, and check a confidence
# Below which look-alikes are confused by images and labeller together.
MIN_ACCURACY = 0.85
# Of the estimate by views on real sets, and by the number of votes at most.
ERROR = 0.03
WIDTH = 0.05  # half of the 95 % interval that the needed answers promise
Z = 1.96


@dataclass(frozen=True)
class Labeller:
    """What is known of a labeller."""

    # None: neither votes and images nor answers determine it.
    accuracy: Interval | None
    weight: float  # mean exponent of its votes in the posterior
    # About random images, to estimate the accuracy; 0 if it is known.
    answers_needed: int


class Labelled:
    """The votes [n, C] of a labeller, and what is learned of it."""

    def __init__(self, votes: Floats, *, is_text: bool) -> None:
        self.is_text = is_text
        self.has: Bools = np.asarray(votes.any(axis=1))
        best = votes[self.has].max(axis=1)
        # Probabilities of ranks are the same in all lists of a length.
        lengths = np.unique(np.count_nonzero(votes[self.has], axis=1))
        self.is_soft = is_text or len(np.unique(best.round(5))) > len(lengths)
        self.named = votes.argmax(axis=1)
        self.votes = votes if self.is_soft else first(votes)
        self.power = 1.0  # of the probabilities as they were given
        c = votes.shape[1]
        self.overall = (self.votes.sum(axis=0) + 1 / c) / (self.votes.sum() + 1)
        self.theta = (0.9 * np.eye(c) + 0.1 * self.overall).astype(np.float32)
        self.delta = np.zeros(c)  # evidence that a vote for the class is right
        # Hard votes whose order alone says something.
        has_lists = not self.is_soft and np.count_nonzero(votes) > self.has.sum()
        self.lists = Lists(votes, self.named) if has_lists else None
        self.tells = True  # whether images predict the votes at all
        # Share of its weight that images take if they are trusted.
        self.replaced = 0.0
        self.starts = 1.0  # weight of its votes in what images learn first
        # Of images that predict the votes:
        self.gain = 1.0
        self.accuracy = np.nan
        self.named_share = self.size = 0.0
        self.meant = 0.98  # share of votes that are not random
        # How often halves of the features confirm images that contradict the votes.
        self.confirmed = 0.0

    @property
    def first(self) -> Floats:
        """Return the first choices [n, C]."""
        return first(self.votes) if self.is_soft else self.votes

    @property
    def believed(self) -> float:
        """Return a confidence in its votes: halfway between their accuracy by images and 1."""
        return 1.0 if np.isnan(self.accuracy) else (1 + self.accuracy) / 2

    def temper(self, q: Floats, votes: Floats) -> None:
        """Find the power that makes some of the votes [n, C] likeliest, given images [n, C]."""

        def value(power: float) -> float:
            p = tempered(votes, power)
            ratio = (q * p / np.maximum(p.mean(axis=0), TINY)).sum(axis=1)
            return max(float(log(u * ratio + 1 - u).sum()) for u in MEANT)

        self.power = max(POWERS, key=value)
        self.votes = tempered(self.votes, self.power)
        c = votes.shape[1]
        self.overall = (self.votes.sum(axis=0) + 1 / c) / (self.votes.sum() + 1)

    def share_meant(self, q: Floats, votes: Floats) -> Floats:
        """Return the probability [n] that votes [n, C] are not random, given images [n, C]."""
        named = self.meant * (q * votes).sum(axis=1)
        random = (1 - self.meant) * (votes @ self.overall)
        return np.asarray(
            named / np.maximum(named + random, TINY), dtype=np.float32
        )

    def targets(self, q: Floats, votes: Floats) -> Floats:
        """Return the classes [n, C] that votes mean, given images [n, C]."""
        share = self.share_meant(q, votes)[:, None]
        return np.asarray(share * normalised(q * votes))

    def confused_targets(self, q: Floats, likelihood: Floats) -> Floats:
        """Return the same, half as the votes are and half by their log-likelihood [n, C].

        By the first half alone, errors of images would be errors of votes. By the second alone,
        images would count for little where they are right and votes are confused.
        """
        share = self.share_meant(q, self.votes)[:, None]
        as_voted = share * normalised(q * self.votes)
        confused = share * softmax(log(q) + likelihood)
        return np.asarray((as_voted + confused) / 2)

    def counts(self, r: Floats) -> Floats:
        """Return the expected number [C, C] of votes by class, given a posterior [n, C].

        It is 0 where the labeller is silent.
        """
        if self.is_soft:
            # Each vote is shared among the classes by theta.
            ratio = r / np.maximum(self.votes @ self.theta.T, TINY)
            return np.asarray(self.theta * (ratio.T @ self.votes))
        return class_sums(self.named, r, r.shape[1]).T

    def likelihood(self, votes: Floats) -> Floats:
        """Return the log-likelihood [n, C] of votes [n, C]; 0 where the labeller is silent."""
        named = votes.argmax(axis=1)
        theta = self.theta.T
        table = log(votes @ theta) if self.is_soft else log(theta)[named]
        table[np.arange(len(votes)), named] += self.delta[named].astype(np.float32)
        if self.lists is not None:
            table += self.lists.likelihood(votes, named)
        table[~votes.any(axis=1)] = 0
        return np.asarray(table)


def agreements(labellers: Sequence[Labelled]) -> tuple[Floats, Floats]:
    """Return [V, V] how far others agree with a labeller, and on which share of its votes."""
    kappa, shared = np.zeros((2, len(labellers), len(labellers)))
    for k, one in enumerate(labellers):
        for j, other in enumerate(labellers[:k]):
            both = one.has & other.has
            if both.sum() >= FEW:
                kappa[k, j] = kappa[j, k] = agreement(
                    one.first[both], other.first[both]
                )
                shared[k, j] = both.sum() / one.has.sum()
                shared[j, k] = both.sum() / other.has.sum()
    return kappa, shared


def shared_errors(labellers: Sequence[Labelled], r: Floats, q: Floats) -> Floats:
    """Return the correlations [V + 1, V + 1] of errors, 0 where they are negative.

    The last source are the images, by q [n, C]. Errors are those of the posterior r [n, C].
    """
    # First classes, so that a copy of the texts' first classes is a copy.
    tables = [*(one.first for one in labellers), q]
    speaks = [*(one.has for one in labellers), np.ones(len(r), dtype=bool)]
    # A vote less what is expected of it, given the posterior.
    errors = [
        p - r @ normalised(r[has].T @ p[has])
        for p, has in zip(tables, speaks, strict=True)
    ]
    rho = np.eye(len(errors))
    for i, one in enumerate(errors):
        for j in range(i):
            both = speaks[i] & speaks[j]
            if both.sum() >= FEW:
                a = one[both]
                b = errors[j][both]
                size = np.sqrt(max(np.vdot(a, a) * np.vdot(b, b), TINY))
                rho[i, j] = rho[j, i] = max(0.0, np.vdot(a, b) / size)
    return rho


class Lists:
    """What it tells that a labeller names a class after its first choice.

    Of images of class c whose first choice f is another one, a share lists c, as the second or as a
    later choice. That is compared with how often f is followed by c whatever the class.
    """

    def __init__(self, votes: Floats, named: Ints) -> None:
        c = votes.shape[1]
        counts = np.bincount(named, minlength=c)[:, None]
        self.usual = []
        for listed in self._listed(votes, named):
            after = class_sums(named, listed, c)  # [first choice, listed class]
            mean = listed.mean(axis=0)
            share = (after + ENOUGH * mean) / (counts + ENOUGH)
            self.usual.append(share.astype(np.float32))
        self.shares = [0.1, 0.1]

    @staticmethod
    def _listed(votes: Floats, named: Ints) -> tuple[Floats, Floats]:
        """Return the second choices and the later ones [n, C]."""
        rest = votes.copy()
        rest[np.arange(len(votes)), named] = 0
        second = first(rest)
        return second, (rest > 0) - second

    def learn(self, votes: Floats, named: Ints, r: Floats) -> None:
        """Learn the shares from a posterior [n, C]."""
        wrong = r.copy()
        wrong[np.arange(len(r)), named] = 0
        total = float(wrong.sum())
        listed = self._listed(votes, named)
        self.shares = [
            (float((wrong * one).sum()) + 1) / (total + FEW) for one in listed
        ]

    def likelihood(self, votes: Floats, named: Ints) -> Floats:
        """Return log-likelihood ratios [n, C], 0 for the first choice."""
        table = np.zeros(votes.shape, dtype=np.float32)
        usual_left = np.ones(votes.shape, dtype=np.float32)
        left = np.ones(votes.shape, dtype=np.float32)
        listed = self._listed(votes, named)
        for one, usual, share in zip(listed, self.usual, self.shares, strict=True):
            of_row = usual[named]
            table += one * np.log(np.float32(share) / np.maximum(of_row, 1e-6))
            usual_left -= of_row
            left -= one
        # Classes that are not listed.
        rest = np.float32(max(1e-3, 1 - sum(self.shares)))
        table += left * np.log(rest / np.maximum(usual_left, 1e-3))
        table[np.arange(len(table)), named] = 0
        return table


def by_answers(labels: Ints, has: Bools, answers: Answers) -> Interval | None:
    """Return the share of a labeller's votes [N] that is right, by drawn and taught answers.

    Images that teach are chosen, so they stand for themselves. Drawn ones stand for the others.
    """
    rows = answers.rows
    spoke = has[rows]
    # With several classes, any of them is right.
    right = answers.shares[np.arange(len(rows)), labels[rows]] > 0
    drawn, taught = spoke & answers.drawn, spoke & ~answers.drawn
    n = int(drawn.sum())
    if n < MIN_DRAWN:
        return None
    return share_right(
        int(has.sum()),
        n,
        int((right & drawn).sum()),
        right=int((right & taught).sum()),
        wrong=int((~right & taught).sum()),
    )


def by_views(one: Labelled) -> Interval | None:
    """Return the accuracy by two halves of the image features, where these are trusted."""
    a, n = one.accuracy, int(one.has.sum())
    if not a >= MIN_ACCURACY or one.size < FEW:
        return None
    sampling = Z * math.sqrt(a * (1 - a) / n)
    if sampling > ERROR:
        return None
    error = ERROR + sampling
    return Interval(a, max(0.0, a - error), min(1.0, a + error), n=0)


def answers_needed(votes: int) -> int:
    """Return how many drawn answers would estimate the accuracy of so many votes to 5 points."""
    wanted = (Z / WIDTH) ** 2 / 4  # of a population without end
    of_votes = wanted / (1 + (wanted - 1) / max(1, votes))
    return min(votes, math.ceil(of_votes))
