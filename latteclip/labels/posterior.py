"""The posterior of the classes of n images, by votes, images and answers together.

The mathematics are in `label_model`, with its letters.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from latteclip.labels.evidence import LEAST, PRIOR, Evidence
from latteclip.labels.image_classes import TINY, fit_weights, pool
from latteclip.labels.labellers import ENOUGH, FEW, shared_errors
from latteclip.labels.votes import Bools, Floats, Ints, normalised, softmax

ROUNDS, STEPS = 6, 3  # of learning images, and of learning the rest in between
SLACK = 1.5  # of the bound on each class
COMPANY = 4.0  # further slack where labellers agree that err apart
PRIOR_ANSWERS = 200.0  # answers that the prior of the exponents is worth


class Tables(NamedTuple):
    """The posterior of some images, and its parts."""

    r: Floats  # [n, C] by everything
    q: Floats  # [n, C] by images alone
    terms: list[Floats]  # log-likelihoods [n, C] by labeller, weighted


class Posterior(Evidence):
    """The labels of the images, the labellers and the images' weights, learned together."""

    def company(self, k: int) -> float:
        """Return how right others are that err apart from a labeller, by its votes; at most 1."""
        apart = (1 - self.rho[k, :-1]) * self.kappa[k]
        agree = apart @ self.shared[k]
        return float(min(1.0, agree / max(self.labellers[k].accuracy, LEAST)))

    def is_bounded(self, k: int) -> bool:
        """Return whether images limit how wrong a labeller is: not if they see what it sees."""
        one = self.labellers[k]
        return not (self.is_blind or one.is_text) and one.tells

    def aim(self, k: int) -> float:
        """Return how right votes are at least, by how far images may overrule them."""
        one = self.labellers[k]
        overruled = max(self.trust, one.confirmed * (1 - one.meant))
        return 1 - overruled * (1 - one.accuracy)

    def _doubt(self, q: Floats, votes: Sequence[Floats]) -> Floats:
        """Return the confirmed probability [n] that votes [n, C] are random, given images [n, C].

        Images overrule such votes however little they are trusted about others.
        """
        has, doubt = np.zeros(len(q), dtype=bool), np.ones(len(q), np.float32)
        for one, p in zip(self.labellers, votes, strict=True):
            if one.tells and not one.is_text:
                speaks = p.any(axis=1)
                is_random = one.confirmed * (1 - one.share_meant(q, p))
                doubt *= np.where(speaks, is_random, 1).astype(np.float32)
                has |= speaks
        return np.asarray(doubt * has)

    def weights(
        self, trust: float, has: Bools, doubt: Floats | float = 0.0
    ) -> Floats:
        """Return the exponents [V + 1, n] of the sources of images, before those by answers."""
        shares = [
            (self.is_blind or one.tells) * (1 - trust * one.replaced)
            for one in self.labellers
        ]
        believed = has * np.array(shares)[:, None]
        images = np.full((1, has.shape[1]), trust + (1 - trust) * doubt)
        speaks = np.vstack([believed, images])
        # How many sources say the same with the same errors.
        copies = np.maximum(self.rho @ speaks, 1)
        w = speaks / copies
        return np.asarray(w, dtype=np.float32)

    def learn(self) -> "Posterior":
        """Learn from the evidence."""
        if self.is_blind:
            for k in range(len(self.labellers)):
                self._learn_confusion(k, self.r)
        for _ in range(ROUNDS):
            self._round()
        return self

    def _round(self) -> None:
        tables = self._scores(self.r)
        self.offset = self._offset(self.r)
        likelihoods = self._likelihoods(self.given)
        for _ in range(STEPS):
            trust = 1.0 if self.texts_alone else self.trust
            doubt = self._doubt(
                softmax(self._pooled(tables, self.given)), self.given
            )
            w = self.weights(trust, self.has, doubt)
            w *= self.exponents[:, None].astype(np.float32)
            self._fit_images(tables, likelihoods, w)
            scores = self._pooled(tables, self.given)
            likelihoods = self._learn_labellers(scores, likelihoods, w)
            if not self.is_blind:
                r = self.put(softmax(_joint(w, likelihoods, scores)))
                self.rho = shared_errors(self.labellers, r, softmax(scores))
        if len(self.known[0]):
            self._fit_exponents(scores)
        self.answered = self._answered(scores)
        self.r = self.put(self._tables(scores, self.given).r)

    def _likelihoods(self, votes: Sequence[Floats]) -> list[Floats]:
        return [
            one.likelihood(p) for one, p in zip(self.labellers, votes, strict=True)
        ]

    def _pooled(self, tables: Sequence[Floats], votes: Sequence[Floats]) -> Floats:
        """Return log q + constant [n, C] by scores of the encoders, if there are some."""
        shape = [*tables, *votes][0].shape
        return np.broadcast_to(pool(self.offset, self.b, tables), shape)

    def _fit_images(
        self, tables: Sequence[Floats], likelihoods: Sequence[Floats], w: Floats
    ) -> None:
        """Learn b from the votes, by scores of the encoders and weights [V + 1, n]."""
        q = softmax(self._pooled(tables, self.given))
        targets = np.zeros(self.r.shape, dtype=np.float32)
        for k, one in enumerate(self.labellers):
            meant = one.confused_targets(q, likelihoods[k])
            weight = np.float32(one.gain * one.tells) * w[k][:, None]
            targets += weight * meant
        self.b = fit_weights(
            tables, self.put(targets), self.offset, self.b, steps=2
        )

    def _learn_labellers(
        self, scores: Floats, likelihoods: Sequence[Floats], w: Floats
    ) -> list[Floats]:
        """Learn theta and delta, and return the likelihoods of the votes by these."""
        r = self.put(softmax(_joint(w, likelihoods, scores)))
        for k in range(len(self.labellers)):
            self._learn_confusion(k, r)
        new = self._likelihoods(self.given)
        for k, one in enumerate(self.labellers):
            if self.is_bounded(k):
                self._bound(k, _joint(w, new, scores), w[k])
                new[k] = one.likelihood(self.given[k])
        return new

    def _fit_exponents(self, scores: Floats) -> None:
        """Learn from answers the exponents of the labellers and of the images.

        They have a normal prior at 1. It is weak where texts alone name classes: these may be
        wrong, and nothing else tells.
        """
        rows, classes = self.known
        images = np.float32(self.trust) * scores[rows]
        self.exponents = fit_weights(
            [*self._answered(scores).terms, images],
            np.eye(self.n_classes)[classes],
            0.0,
            self.exponents,
            centre=1.0,
            precision=PRIOR if self.texts_alone else PRIOR_ANSWERS,
        )

    def _answered(self, scores: Floats) -> Tables:
        """Return the posterior of images whose class is known, by scores [n, C] of all."""
        rows, _ = self.known
        return self._tables(scores[rows], [p[rows] for p in self.given])

    def _tables(self, scores: Floats, votes: Sequence[Floats]) -> Tables:
        """Return the posterior of images by their scores and votes."""
        has = np.array([p.any(axis=1) for p in votes]).reshape(
            len(votes), len(scores)
        )
        q = softmax(scores)
        w = self.weights(self.trust, has, self._doubt(q, votes))
        likelihoods = self._likelihoods(votes)
        terms = [w[k][:, None] * one for k, one in enumerate(likelihoods)]
        w *= self.exponents[:, None].astype(np.float32)
        total = _joint(w, likelihoods, scores)
        return Tables(softmax(total), q, terms)

    def of(self, scores: Sequence[Floats], votes: Sequence[Floats]) -> Tables:
        """Return the posterior of other images by scores [n, C] of encoders and votes [n, C]."""
        return self._tables(self._pooled(scores, votes), self.as_meant(votes))

    def _learn_confusion(self, k: int, r: Floats) -> None:
        """Learn theta of a labeller by a posterior [n, C], with a Dirichlet prior."""
        one, c = self.labellers[k], self.n_classes
        counts = one.counts(r * one.has[:, None])
        accuracy = float(np.trace(counts) / max(counts.sum(), TINY))
        prior = PRIOR * max(1.0, ENOUGH * c / max(1, one.has.sum()))
        if self.is_blind:
            prior = FEW / c
        elif self.is_bounded(k):
            accuracy = self.aim(k)
        elif one.is_text:  # they say little of their own accuracy
            accuracy = (
                max(accuracy, one.accuracy) if self.texts_alone else one.accuracy
            )
        # Wrong votes name a class as often as all votes do.
        base = accuracy * np.eye(c) + (1 - accuracy) * one.overall
        one.theta = normalised(counts + prior * base).astype(np.float32)
        if one.lists is not None:
            rows = np.flatnonzero(one.has)
            one.lists.learn(self.given[k][rows], one.named[rows], r[rows])

    def _bound(self, k: int, pooled: Floats, w: Floats) -> None:
        """Find delta >= 0 with which the votes of each class are right as often as they must be."""
        one, c = self.labellers[k], self.n_classes
        rows = np.flatnonzero(one.has)
        named, w = one.named[rows], w[rows].astype(float)
        right = softmax(pooled[rows])[np.arange(len(rows)), named].astype(float)
        right = np.clip(right, 1e-7, 1 - 1e-7)
        # Log odds that a vote is right, without the delta of before.
        odds = np.log(right / (1 - right)) - one.delta[named] * w
        slack = SLACK * (1 + COMPANY * self.company(k))
        least = 1 - slack * (1 - self.aim(k))
        must = least * np.bincount(named, minlength=c)
        # Bisection, of all classes at once.
        low = np.zeros(c)
        high = np.full(c, 16.0)
        for _ in range(12):
            middle = (low + high) / 2
            right = 1 / (1 + np.exp(-odds - middle[named] * w))
            lacks = np.bincount(named, right, minlength=c) < must
            low = np.where(lacks, middle, low)
            high = np.where(lacks, high, middle)
        one.delta = low


def _joint(w: Floats, likelihoods: Sequence[Floats], scores: Floats) -> Floats:
    """Return log r + constant [n, C], by weights [V + 1, n] of the labellers and the images."""
    return pool(w[-1][:, None] * scores, w[:-1, :, None], likelihoods)


class Confidence:
    """The probability that a label is right: a mean of the posterior and of images alone.

    Where images are few or say little, it is that of the labellers themselves.
    """

    def __init__(self, model: Posterior) -> None:
        self.model = model
        self.factor = 1.0
        self.share = 0.5
        predict = any(one.gain > TINY for one in model.labellers)
        self.by_images = (predict and model.trust >= 0.5) or model.is_taught
        if model.texts_alone:
            self.share = 1.0
            self._fit_factor()
        elif model.images:
            self._fit_share()

    def _fit_factor(self) -> None:
        """Multiply by how often class texts are right over how sure they are, by answers."""
        _, classes = self.model.known
        known = self.model.answered.r
        right = (known.argmax(axis=1) == classes).sum()
        right += PRIOR * self.model.labellers[0].believed
        self.factor = min(1.0, float(right / (known.max(axis=1).sum() + PRIOR)))

    def _fit_share(self) -> None:
        """Fit the share of the posterior to answers, with a normal prior at a half."""
        _, classes = self.model.known
        r, q = self.model.answered.r, self.model.answered.q
        best = r.argmax(axis=1)
        at = np.arange(len(r))
        by_r, by_q = r[at, best], q[at, best]
        shares = np.linspace(0, 1, 21)
        sure = by_q + shares[:, None] * (by_r - by_q)  # [21, J]
        fit = np.where(best == classes, sure, 1 - sure)
        fit = np.log(np.clip(fit, 1e-3, 1)).sum(axis=1)
        prior = -8 * (shares - self.share) ** 2
        self.share = float(shares[(fit + prior).argmax()])

    def of(self, tables: Tables, votes: Sequence[Floats], labels: Ints) -> Floats:
        """Return the confidence [n] of labels."""
        at = np.arange(len(labels))
        by_r, by_q = tables.r[at, labels], tables.q[at, labels]
        if self.model.images and self.by_images:
            mean = self.share * by_r + (1 - self.share) * by_q
            return np.asarray(self.factor * mean)
        # The mean probability of the labels by the labellers that name a class.
        speak, total = np.zeros((2, len(labels)))
        meant = self.model.as_meant(votes)
        for one, p in zip(self.model.labellers, meant, strict=True):
            speak += p.any(axis=1)
            total += p[at, labels] * one.believed
        by_votes = np.where(speak > 0, total / np.maximum(speak, 1), by_r)
        if self.model.images or len(votes) == 1:
            return by_votes
        return np.asarray((by_r + by_votes) / 2)
