"""The posterior of the classes of n images, by votes, images and answers together.

The mathematics are in `label_model`, with its letters.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from latteclip.labels.image_classes import (
    TINY,
    ImageClasses,
    fit_weights,
    lean,
    pool,
)
from latteclip.labels.labellers import (
    ENOUGH,
    FEW,
    MIN_DRAWN,
    Labelled,
    agreements,
    shared_errors,
)
from latteclip.labels.votes import (
    CELLS,
    Answers,
    Bools,
    Floats,
    Ints,
    agreement,
    first,
    log,
    normalised,
    softmax,
)

ROUNDS, STEPS = 6, 3  # of learning images, and of learning the rest in between
PRIOR = 6.0  # votes that what is known without them is worth
SHARPNESS, SLACK = 6, 1.5  # of the trust in images; of the bound on each class
COMPANY = 4.0  # further slack where labellers agree that err apart
PRIOR_ANSWERS = 200.0  # answers that the prior of the exponents is worth
ANSWERED = 2.0  # images that an answered one is worth where texts are alone
REPEATS = 0.98  # agreement with class texts of the only labeller, if it repeats them
MEANT, LOOKS = (0.98, 0.7, 0.5, 0.3), 5  # starts of the share of votes that are not random
LEAST = 0.05  # accuracy or trust in a quotient
NEVER = -100.0  # logit of a class that no vote and no answer names


class Tables(NamedTuple):
    """The posterior of some images, and its parts."""

    r: Floats  # [n, C] by everything
    q: Floats  # [n, C] by images alone
    terms: list[Floats]  # log-likelihoods [n, C] by labeller, weighted


class Posterior:
    """Images, votes [n, C] of V labellers and answers, learned together."""

    def __init__(
        self,
        images: Sequence[ImageClasses],
        votes: Sequence[Floats],
        n_classes: int,
        answers: Answers,
        *,
        has_texts: bool,
        named: Bools,  # [C] which classes images can have
    ) -> None:
        self.images = list(images)
        self.n_classes = n_classes
        self.named = named
        self.answers = answers
        self.has_texts = has_texts
        self.lean = lean(log(votes[0])) if has_texts else np.zeros(n_classes)
        self.given = self._without_lean(votes)
        self.labellers = [
            Labelled(p, is_text=has_texts and k == 0) for k, p in enumerate(self.given)
        ]
        self.texts_alone = False
        if has_texts and len(votes) == 1:
            self._leave_texts_alone()
        v, n = len(votes), len(images[0].x if images else votes[0])
        self.has = np.array([one.has for one in self.labellers]).reshape(v, n)
        # Until errors are known, all labellers are copies of one. The last source are the images.
        # Without images nothing tells errors apart, and only copies are found.
        self.kappa = agreements(self.labellers)
        self.rho = np.eye(v + 1)
        self.rho[:v, :v] = 1 if images else self.kappa > REPEATS
        np.fill_diagonal(self.rho, 1)
        self.exponents = np.ones(v + 1)
        self.b = np.full(len(self.images), 10.0 / max(1, len(self.images)))
        self.trust = self.fits = 1.0
        self.size = np.inf
        self.is_blind = not images
        self.zero_shot = first(votes[0]) if has_texts else None
        if images and votes:
            self._look_at_labellers()
        for one in self.labellers:
            if self.is_blind or not one.tells:
                one.lists = None
        total = np.zeros((n, n_classes), dtype=np.float32)
        believed = [one for one in self.labellers if one.tells]
        for one in [one for one in believed if not one.is_text] or believed:
            total += one.votes
        self.r = self.put(normalised(total))
        if self.is_blind:
            for k in range(v):
                self._learn_confusion(k, self.r)
        self.learn(ROUNDS)

    def _leave_texts_alone(self) -> None:
        """Let texts alone name classes: images of a class are a cluster, until answers are some."""
        self.texts_alone = True
        for one in self.images:
            one.clusters = len(self.answers.rows) < FEW

    def _without_lean(self, votes: Sequence[Floats]) -> list[Floats]:
        """Return votes [n, C] of the labellers, those of the class texts without their lean."""
        tables = list(votes)
        if self.has_texts:
            tables[0] = softmax(self._of_named(log(tables[0]) - self.lean))
        return tables

    def _of_named(self, scores: Floats) -> Floats:
        """Return scores [..., C] that no image has of a class without evidence."""
        return np.where(self.named, scores, NEVER).astype(np.float32)

    @property
    def known(self) -> tuple[Ints, Ints]:
        """Return rows and classes of answers that name one class."""
        single = (self.answers.shares > 0).sum(axis=1) == 1
        return self.answers.rows[single], self.answers.shares[single].argmax(axis=1)

    @property
    def is_taught(self) -> bool:
        """Return whether answers are enough to check a confidence."""
        return len(self.known[0]) >= MIN_DRAWN

    def put(self, table: Floats) -> Floats:
        """Return a posterior [n, C] that answers decide where there are some."""
        return decided(table, self.answers.rows, self.answers.shares)

    # --- what is known before learning ------------------------------------------------------------

    def _look_at_labellers(self) -> None:
        """Learn gain and accuracy of labellers, and the trust in images, from votes as given."""
        views = self.images[0].halves()
        for one in self.labellers:
            self._look_at(one, views)
        for one in self.labellers[1:]:
            if one.tells and self._errs_with_texts(one):
                one.tells = False
        believed = [one for one in self.labellers if one.tells]
        seen = [one for one in believed if not one.is_text]
        # Class texts see what their encoder sees, so that votes judge them, or else answers.
        if self.has_texts and (seen or len(self.known[0]) >= FEW):
            texts = self.labellers[0]
            texts.accuracy = self._judged(seen)
            texts.gain *= texts.accuracy**2
            texts.replaced = 1 - texts.accuracy**2
        seen = seen or believed
        if not seen:  # images predict no votes, and may learn from answers alone
            self.is_blind = len(self.answers.rows) < self.n_classes
            self.size = 0.0 if self.is_blind else _size(self.answers.shares)
            self.trust = self.size / (self.size + 2)
            self.fits = float(not self.is_blind)
            self.rho = np.eye(len(self.labellers) + 1)
            return
        share = np.array([one.gain for one in seen])
        share /= share.sum()
        self.size = float(np.exp(share @ np.log([one.size for one in seen])))
        a = max(float(share @ [one.accuracy for one in seen]), LEAST)
        named = float(share @ [one.named_share / one.meant for one in seen])
        if not self.texts_alone:
            self.fits = min(1.0, named / a**2, 2 * named) ** SHARPNESS
        self.trust = self.fits * self.size / (self.size + 2)
        if self.has_texts and believed == self.labellers[:1]:
            self._leave_texts_alone()

    def _errs_with_texts(self, one: Labelled) -> bool:
        """Return whether most votes repeat class texts, which images predict however wrong.

        If a share s does, the votes agree with texts of accuracy a for about s + (1 - s) a. Where
        nothing says how right texts are, nearly all votes must agree with them.
        """
        if self.zero_shot is None:
            return False
        others = [each for each in self.labellers[1:] if each.tells and each is not one]
        agree = agreement(one.first[one.has], self.zero_shot[one.has])
        return agree > ((1 + self._judged(others)) / 2 if others else REPEATS)

    def _judged(self, seen: Sequence[Labelled]) -> float:
        """Return the accuracy of texts by answers, and by labellers that err apart from them."""
        texts = self.labellers[0]
        rows, classes = self.known
        named, right = float((texts.named[rows] == classes).sum()), float(len(rows))
        if not seen:
            return (named + PRIOR * texts.accuracy) / (right + PRIOR)
        for one in seen:
            named += agreement(texts.first[one.has], one.first[one.has]) * one.has.sum()
            right += one.accuracy * one.has.sum()
        return float(min(0.99, named / max(right, TINY)))

    def _look_at(self, one: Labelled, views: Sequence[ImageClasses]) -> None:
        """Learn how images predict a labeller, and its accuracy by them.

        The gain is the share of the information of the votes that images predict. Votes that they
        do not predict count for nothing, unless there are too few images of a class to tell.
        """
        given = one.votes if one.is_text else one.first
        votes, has = self.put(given), np.flatnonzero(one.has)
        has = has[:: -(-has.size * self.n_classes // CELLS) or 1]
        p = given[has]
        blind = float(log(p @ one.overall).sum())
        one.gain = one.accuracy = 0.0
        one.tells = False
        if len(p) < 2 or blind > -TINY:
            return
        tables, offset = [table[has] for table in self._scores(votes)], self._offset(votes)
        found, b = self._best_share(one, p, tables, offset)
        q = softmax(pool(offset, b, tables))
        is_predicted = found - blind > FEW
        one.gain = 1 - found / blind if is_predicted else TINY
        one.named_share = float((q.argmax(axis=1) == one.named[has]).mean())
        one.size = _size(given)
        one.tells = is_predicted or (self.has_texts and self.labellers[0].size < FEW)
        halves = []
        for view in views:
            view.learn(votes)
            halves.append(softmax(pool(offset, b[:1], [view.scores()[has]])))
        by_halves = [agreement(one.first[has], half) for half in halves]
        accuracy = math.sqrt(math.prod(by_halves) / max(agreement(*halves), 1e-3))
        most = one.meant + (1 - one.meant) * float(one.overall @ one.overall)
        one.accuracy = min(max(min(0.99, accuracy), one.named_share), most)

    def _best_share(
        self, one: Labelled, p: Floats, tables: Sequence[Floats], offset: Floats
    ) -> tuple[float, Floats]:
        """Find the share of votes that are not random, and return the likelihood and b.

        The likelihood of votes p [n, C] has several maxima, by scores [n, C] of the encoders.
        """
        chance = p @ one.overall
        tried = []
        for one.meant in MEANT:
            b = self.b
            for _ in range(LOOKS):
                q = softmax(pool(offset, b, tables))
                b = fit_weights(tables, one.targets(q, p), offset, b, steps=1)
                share = one.share_meant(q, p)
                one.meant = float((share.sum() + FEW) / (len(p) + FEW))
            q = softmax(pool(offset, b, tables))
            mixed = one.meant * (q * p).sum(axis=1) + (1 - one.meant) * chance
            tried.append((float(log(mixed).sum()), one.meant, b))
        found, one.meant, b = max(tried, key=lambda each: each[0])
        return found, b

    # --- learning -------------------------------------------------------------------------------

    def _offset(self, r: Floats) -> Floats:
        table = np.log((r.sum(axis=0) + 1) / (r.sum() + self.n_classes)).astype(np.float32)
        return self._of_named(table if self.texts_alone else table / 2)

    @property
    def frequencies(self) -> Floats:
        """Return half the log frequencies [C] of new images: the labels', halfway to equal ones."""
        n = self.r.sum(axis=0)
        shares = (n / max(n.sum(), TINY) + 1 / self.n_classes) / 2
        return self._of_named(log(shares) / 2)

    def _scores(self, r: Floats) -> list[Floats]:
        if self.texts_alone and len(self.answers.rows):
            r = r.copy()
            r[self.answers.rows] *= ANSWERED
        for one in self.images:
            one.learn(r)
        return [one.scores() for one in self.images]

    def company(self, k: int) -> float:
        """Return how right others are that err apart from a labeller, by its votes; at most 1."""
        v = len(self.labellers)
        agree = (1 - self.rho[k, :v]) @ self.kappa[k]
        return float(min(1.0, agree / max(self.labellers[k].accuracy, LEAST)))

    def is_bounded(self, k: int) -> bool:
        """Return whether images limit how wrong a labeller is: not if they see what it sees."""
        one = self.labellers[k]
        return not (self.is_blind or one.is_text) and one.tells

    def aim(self, k: int) -> float:
        """Return how right votes are at least, by how far images and others are trusted."""
        trusted = max(self.trust, self.company(k))
        return float(1 - trusted * (1 - self.labellers[k].accuracy))

    def weights(self, trust: float, has: Bools) -> Floats:
        """Return the exponents [V + 1, n] of the sources of images, before those by answers."""
        shares = [
            (self.is_blind or one.tells) * (1 - trust * one.replaced)
            for one in self.labellers
        ]
        believed = has * np.array(shares)[:, None]
        speaks = np.vstack([believed, np.full((1, has.shape[1]), trust)])
        w = speaks / np.maximum(self.rho @ speaks, 1)
        return np.asarray(w, dtype=np.float32)

    def learn(self, rounds: int) -> None:
        """Learn for some rounds."""
        for _ in range(rounds):
            self._round()

    def _round(self) -> None:
        tables, self.offset = self._scores(self.r), self._offset(self.r)
        likelihoods = self._likelihoods(self.given)
        for _ in range(STEPS):
            w = self.weights(1.0 if self.texts_alone else self.trust, self.has)
            w *= self.exponents[:, None].astype(np.float32)
            self._fit_images(tables, likelihoods, w)
            scores = self._pooled(tables, self.given)
            likelihoods = self._learn_labellers(scores, likelihoods, w)
            if not self.is_blind:
                r = self.put(softmax(_joint(w, likelihoods, scores)))
                self.rho = shared_errors(self.labellers, r, softmax(scores))
        self.tables = self._tables(scores, self.given)
        if len(self.known[0]):
            self._fit_exponents(scores)
            self.tables = self._tables(scores, self.given)
        self.r = self.put(self.tables.r)

    def _likelihoods(self, votes: Sequence[Floats]) -> list[Floats]:
        return [one.likelihood(p) for one, p in zip(self.labellers, votes, strict=True)]

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
            targets += np.float32(one.gain * one.tells) * w[k][:, None] * meant
        self.b = fit_weights(tables, self.put(targets), self.offset, self.b, steps=2)

    def _learn_labellers(
        self, scores: Floats, likelihoods: Sequence[Floats], w: Floats
    ) -> list[Floats]:
        """Learn theta and delta, and return the likelihoods of the votes by these."""
        r = self.put(softmax(_joint(w, likelihoods, scores)))
        for k in range(len(self.labellers)):
            self._learn_confusion(k, r)
        new = self._likelihoods(self.given)
        for k, one in enumerate(self.labellers):
            if self.is_bounded(k) and not one.is_soft:
                self._bound(k, _joint(w, new, scores), w[k])
            else:
                one.delta[:] = 0
            new[k] = one.likelihood(self.given[k])
        return new

    def _fit_exponents(self, scores: Floats) -> None:
        """Learn from answers the exponents of the labellers and of the images."""
        rows, classes = self.known
        terms = [*self.tables.terms, np.float32(self.trust) * scores]
        self.exponents = fit_weights(
            [term[rows] for term in terms],
            np.eye(self.n_classes)[classes],
            0.0,
            self.exponents,
            centre=1.0,
            precision=PRIOR if self.texts_alone else PRIOR_ANSWERS,
        )

    def _tables(self, scores: Floats, votes: Sequence[Floats]) -> Tables:
        """Return the posterior of images by their scores and votes."""
        has = np.array([p.any(axis=1) for p in votes]).reshape(len(votes), len(scores))
        w = self.weights(self.trust, has)
        likelihoods = self._likelihoods(votes)
        terms = [w[k][:, None] * one for k, one in enumerate(likelihoods)]
        w *= self.exponents[:, None].astype(np.float32)
        total = _joint(w, likelihoods, scores)
        return Tables(softmax(total), softmax(scores), terms)

    def of(self, scores: Sequence[Floats], votes: Sequence[Floats]) -> Tables:
        """Return the posterior of other images by scores [n, C] of encoders and votes [n, C]."""
        return self._tables(self._pooled(scores, votes), self._without_lean(votes))

    def _learn_confusion(self, k: int, r: Floats) -> None:
        """Learn theta of a labeller by a posterior [n, C]."""
        one, c = self.labellers[k], self.n_classes
        counts = one.counts(r * one.has[:, None])
        accuracy = float(np.trace(counts) / max(counts.sum(), TINY))
        prior = PRIOR * max(1.0, ENOUGH * c / max(1, one.has.sum()))
        if self.is_blind:
            prior = FEW / c
        elif self.is_bounded(k):
            accuracy = self.aim(k)
        elif one.is_text:  # they say little of their own accuracy
            accuracy = max(accuracy, one.accuracy) if self.texts_alone else one.accuracy
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
        odds = np.log(right / (1 - right)) - one.delta[named] * w
        slack = SLACK * (1 + COMPANY * self.company(k))
        must = np.bincount(named, minlength=c) * (1 - slack * (1 - self.aim(k)))
        low, high = np.zeros(c), np.full(c, 16.0)
        for _ in range(12):
            middle = (low + high) / 2
            right = 1 / (1 + np.exp(-odds - middle[named] * w))
            lacks = np.bincount(named, right, minlength=c) < must
            low, high = np.where(lacks, middle, low), np.where(lacks, high, middle)
        one.delta = low


def _joint(w: Floats, likelihoods: Sequence[Floats], scores: Floats) -> Floats:
    """Return log r + constant [n, C], by weights [V + 1, n] of the labellers and the images."""
    return pool(w[-1][:, None] * scores, w[:-1, :, None], likelihoods)


def _size(shares: Floats) -> float:
    """Return the geometric mean of the images of the classes that have some, by shares [n, C]."""
    counts = shares.sum(axis=0)
    counts = counts[counts >= 0.5]
    return float(np.exp(np.log(counts).mean())) if len(counts) else 1.0


def decided(table: Floats, rows: Ints, shares: Floats) -> Floats:
    """Return a posterior [n, C] in which answers [A, C] decide about some rows."""
    if not len(rows):
        return table
    table = table.copy()
    table[rows] = normalised((table[rows] + 1e-9) * shares)
    return table
