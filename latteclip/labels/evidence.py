"""What votes, images and answers tell of each other before labels are learned.

The mathematics are in `label_model`, with its letters.
"""

import math
from collections.abc import Sequence

import numpy as np

from latteclip.labels.image_classes import (
    TINY,
    ImageClasses,
    fit_weights,
    lean,
    pool,
)
from latteclip.labels.labellers import (
    FEW,
    MEANT,
    MIN_DRAWN,
    Labelled,
    agreements,
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
    tempered,
)

PRIOR = 6.0  # votes that what is known without them is worth
SHARPNESS = 6  # of the trust in images
LEAST_NAMED = 1 / 2  # of the votes that are not random, where images are trusted
ANSWERED = 2.0  # images that an answered one is worth where texts are alone
# Agreement with class texts of the only labeller, if it repeats them.
REPEATS = 0.98
LOOKS = 5  # steps to the share of votes that are not random
COMPARISONS = 10  # steps to accuracies by which labellers agree as they do
LEAST = 0.05  # accuracy or trust in a quotient
NEVER = -1000.0  # logit of a class that no vote and no answer names


class Evidence:
    """Images, votes [n, C] of V labellers and answers, and what they tell before learning."""

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
        self.labellers: list[Labelled] = []
        self.given = self.as_meant(votes)
        self.labellers = [
            Labelled(p, is_text=has_texts and k == 0)
            for k, p in enumerate(self.given)
        ]
        self.texts_alone = False
        if has_texts and len(votes) == 1:
            self._leave_texts_alone()
        v, n = len(votes), len(images[0].x if images else votes[0])
        self.has = np.array([one.has for one in self.labellers]).reshape(v, n)
        # Until errors are known, all labellers are copies of one. The last source are the images.
        # Without images nothing tells errors apart, and only copies are found.
        self.kappa, self.shared = agreements(self.labellers)
        self.rho = np.eye(v + 1)
        self.rho[:v, :v] = 1 if images else self.kappa * self.shared > REPEATS
        np.fill_diagonal(self.rho, 1)
        self.exponents = np.ones(v + 1)
        self.b = np.full(len(self.images), 10.0 / max(1, len(self.images)))
        self.trust = self.fits = 1.0
        self.size = np.inf
        self.is_blind = not images
        if images and votes:
            self._look_at_labellers(first(votes[0]))
        for one in self.labellers:
            if self.is_blind or not one.tells:
                one.lists = None
        total = np.zeros((n, n_classes), dtype=np.float32)
        for one in self.labellers:
            if one.tells:
                total += np.float32(one.starts) * one.votes
        self.r = self.put(normalised(total))  # what images learn first

    def _leave_texts_alone(self) -> None:
        """Let texts alone name classes: images of a class are a cluster, until answers are ten."""
        self.texts_alone = True
        for one in self.images:
            one.clusters = len(self.answers.rows) < FEW

    def as_meant(self, votes: Sequence[Floats]) -> list[Floats]:
        """Return votes [n, C] of the labellers, those of class texts without lean, and tempered."""
        tables = list(votes)
        if self.has_texts:
            tables[0] = softmax(self._of_named(log(tables[0]) - self.lean))
            if self.labellers:
                tables[0] = tempered(tables[0], self.labellers[0].power)
        return tables

    def _of_named(self, scores: Floats) -> Floats:
        """Return scores [..., C] that no image has of a class without evidence."""
        return np.where(self.named, scores, NEVER).astype(np.float32)

    @property
    def known(self) -> tuple[Ints, Ints]:
        """Return rows and classes of answers that name one class."""
        single = (self.answers.shares > 0).sum(axis=1) == 1
        classes = self.answers.shares[single].argmax(axis=1)
        return self.answers.rows[single], classes

    @property
    def is_taught(self) -> bool:
        """Return whether answers are enough to check a confidence."""
        return len(self.known[0]) >= MIN_DRAWN

    def put(self, table: Floats) -> Floats:
        """Return a posterior [n, C] that answers decide where there are some."""
        return decided(table, self.answers.rows, self.answers.shares)

    def _look_at_labellers(self, zero_shot: Floats) -> None:
        """Learn gain and accuracy of labellers, and the trust in images, from votes as given.

        With class texts, `zero_shot` [n, C] are their first choices with their lean. Beside votes,
        images start from these, which say how right texts are, a_t: images that are trusted replace
        1 - a_t^2 of the weight of texts. Texts that are righter than votes teach at the start too.
        """
        views = self.images[0].halves()
        for one in self.labellers:
            self._look_at(one, views)
        for one in self.labellers[1:]:
            if one.tells and self.has_texts and self._repeats(one, zero_shot):
                one.tells = False
        believed = [one for one in self.labellers if one.tells]
        seen = [one for one in believed if not one.is_text]
        fits = [_fits(one) for one in seen]
        self._compare(seen)
        # Class texts see what their encoder sees, so that votes judge them, or else answers.
        texts = self.labellers[0]
        if self.has_texts and (seen or len(self.known[0]) >= FEW):
            texts.accuracy = self._judged(seen)
            texts.replaced = 1 - texts.accuracy**2
            texts.starts = float(not seen)
        # Votes that texts are righter than do not say how sure these are.
        if self.has_texts and seen and not self._is_righter(texts, seen):
            self._temper(texts, seen)
        if not seen:
            seen = believed
            fits = [_fits(one) for one in seen]
        if seen:
            self._trust_images(seen, fits)
        else:
            self._trust_answers()
        if self.has_texts and believed == self.labellers[:1]:
            self._leave_texts_alone()

    @staticmethod
    def _is_righter(one: Labelled, seen: Sequence[Labelled]) -> bool:
        """Return whether these are texts that are righter than the labellers, each by its gain."""
        gains = np.array([each.gain for each in seen])
        accuracies = np.array([each.accuracy for each in seen])
        return one.is_text and bool(
            one.accuracy * gains.sum() > gains @ accuracies
        )

    def _temper(self, texts: Labelled, seen: Sequence[Labelled]) -> None:
        """Find how sure class texts are, by images that learn from the votes.

        It is the power of their probabilities p that makes them likeliest: if they are right as
        often as they say, their likelihood in class c is p_c / mean p_c.
        """
        total = sum(np.float32(one.gain) * one.first for one in seen)
        taught = self.put(normalised(np.asarray(total)))
        tables, offset = self._scores(taught), self._offset(taught)
        b = fit_weights(tables, taught, offset, self.b)
        rows = slice(None, None, -(-taught.size // CELLS))
        q = softmax(pool(offset, b, [table[rows] for table in tables]))
        texts.temper(q, texts.votes[rows])
        self.given[0] = texts.votes

    def _trust_answers(self) -> None:
        """Let images, which predict no votes, learn from answers alone, if these are enough."""
        self.is_blind = len(self.answers.rows) < self.n_classes
        self.size = 0.0 if self.is_blind else _size(self.answers.shares)
        self.trust = self.size / (self.size + 2)
        self.fits = float(not self.is_blind)
        self.rho = np.eye(len(self.labellers) + 1)

    def _trust_images(
        self, seen: Sequence[Labelled], fits: Sequence[float]
    ) -> None:
        """Find the trust in images by labellers that they predict, each by its gain."""
        share = np.array([one.gain for one in seen])
        share /= share.sum()
        sizes = np.log([one.size for one in seen])
        self.size = float(np.exp(share @ sizes))
        texts = self.labellers[0]
        # Texts that are righter teach the images, which then need not name the votes.
        if self._is_righter(texts, seen):
            texts.starts = texts.accuracy**2
        elif not self.texts_alone:
            self.fits = min(1.0, float(share @ fits)) ** SHARPNESS
        self.trust = self.fits * self.size / (self.size + 2)

    def _compare(self, seen: Sequence[Labelled]) -> None:
        """Lower accuracy and gain of labellers that contradict others: not all can be right.

        One factor explains how labellers agree (Spearman 1904): a_v is at most the least squares of
        kappa_vj = a_v a_j over the others, and the gain falls with its square. Class texts are a
        witness beside two.
        """
        witnesses = [*seen]
        if self.has_texts and len(seen) > 1:
            witnesses.append(self.labellers[0])
        at = [self.labellers.index(one) for one in witnesses]
        kappa, shared = self.kappa[np.ix_(at, at)], self.shared[np.ix_(at, at)]
        by_images = found = np.array([one.accuracy for one in witnesses])
        if not shared.any():
            return
        for _ in range(COMPARISONS):
            size = (shared > 0) @ found**2
            by_others = np.where(size, kappa @ found / np.maximum(size, TINY), 1)
            found = np.sqrt(found * np.minimum(by_images, by_others))
            found = np.maximum(found, LEAST)
        for one, accuracy in zip(seen, found, strict=False):
            one.gain *= float(accuracy / one.accuracy) ** 2
            one.accuracy = float(accuracy)

    def _repeats(self, one: Labelled, zero_shot: Floats) -> bool:
        """Return whether most votes repeat class texts, which images predict however wrong.

        If a share s does, the votes agree with texts of accuracy a for about s + (1 - s) a. Where
        nothing says how right texts are, nearly all votes must agree with them.
        """
        others = [
            each for each in self.labellers[1:] if each.tells and each is not one
        ]
        agree = agreement(one.first[one.has], zero_shot[one.has])
        return agree > ((1 + self._judged(others)) / 2 if others else REPEATS)

    def _judged(self, seen: Sequence[Labelled]) -> float:
        """Return the accuracy of texts by answers, and by labellers that err apart from them."""
        texts = self.labellers[0]
        rows, classes = self.known
        named = float((texts.named[rows] == classes).sum())
        right = float(len(rows))
        if not seen:
            return (named + PRIOR * texts.accuracy) / (right + PRIOR)
        # Votes count as answers of their own accuracy.
        for one in seen:
            agree = agreement(texts.first[one.has], one.first[one.has])
            named += agree * one.has.sum()
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
        # The log-likelihood of the votes without images.
        blind = float(log(p @ one.overall).sum())
        one.gain = one.accuracy = 0.0
        one.tells = False
        if len(p) < 2 or blind > -TINY:
            return
        tables = [table[has] for table in self._scores(votes)]
        offset = self._offset(votes)
        found, b = self._best_share(one, p, tables, offset)
        q = softmax(pool(offset, b, tables))
        is_predicted = found - blind > FEW
        one.gain = 1 - found / blind if is_predicted else TINY
        one.named_share = float((q.argmax(axis=1) == one.named[has]).mean())
        one.size = _size(given)
        are_few = self.has_texts and self.labellers[0].size < FEW
        one.tells = is_predicted or are_few
        # What each half of the features names, by the other folds' votes.
        halves = []
        for view in views:
            view.learn(votes)
            halves.append(softmax(pool(offset, b[:1], [view.scores()[has]])))
        one.accuracy = _by_halves(one, one.first[has], halves)
        one.confirmed = _confirmed(one.named[has], q, halves)

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

    def _offset(self, r: Floats) -> Floats:
        table = np.log((r.sum(axis=0) + 1) / (r.sum() + self.n_classes))
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


def _by_halves(one: Labelled, named: Floats, halves: Sequence[Floats]) -> float:
    """Return a labeller's accuracy by its first choices [n, C] and by q [n, C] of two views.

    It is at least what images name of its votes, and at most the share that is not random and what
    is right by chance.
    """
    product = math.prod(agreement(named, half) for half in halves)
    accuracy = math.sqrt(product / max(agreement(*halves), 1e-3))
    by_chance = float(one.overall @ one.overall)
    most = one.meant + (1 - one.meant) * by_chance
    accuracy = max(min(0.99, accuracy), one.named_share)
    return max(min(accuracy, most), LEAST)


def _confirmed(named: Ints, q: Floats, halves: Sequence[Floats]) -> float:
    """Return how often both halves name what images name in place of the vote.

    It is a share of how often they name what images name as the vote does, at most 1.
    """
    labels = q.argmax(axis=1)
    both = np.all([half.argmax(axis=1) == labels for half in halves], axis=0)
    agree = labels == named
    if agree.all() or not both[agree].any():
        return 0.0
    return float(min(1.0, both[~agree].mean() / both[agree].mean()))


def _fits(one: Labelled) -> float:
    """Return the votes that images name, for each that they name where they are trusted.

    That is half of the votes that are not random, and as many as two sources as right would name.
    """
    return float(one.named_share / (one.meant * max(one.accuracy**2, LEAST_NAMED)))


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
