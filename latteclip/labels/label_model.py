# ruff: noqa: D, B905, E501, RUF
# mypy: ignore-errors
"""Label images by everything that names classes: one model. Not in the paper.

First version: the interface is final, the inside is being rewritten.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
Ints = npt.NDArray[Any]
ZERO_SHOT = "zero_shot"  # the name of the class texts among the labellers
NONE = -1  # the number that stands for no class
TINY = 1e-12
ROUNDS, STEPS = 6, 3
PRIOR, ENOUGH = 6.0, 25.0
SHRINKAGE, HEAD_SHRINKAGE, FOLDS = 0.4, 0.5, 5
SHARPNESS, SLACK = 6, 1.5
PRIOR_ANSWERS, PRIOR_ACCURACY = 50.0, 25.0
SCALE = 100.0


class Interval(NamedTuple):
    """An estimate with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Labeller:
    """What is known of a labeller."""

    accuracy: Interval | None  # None: unknown
    identified: bool  # whether votes, images or answers determine the accuracy
    weight: float  # mean exponent of its votes in the posterior
    answers_needed: int  # answers about random images that would estimate it, 0 if identified


@dataclass(frozen=True)
class Answers:
    """A person's answers about A images."""

    rows: Ints  # [A]
    # [A, C] share of each class, several where the person allows several; 0: none of the classes
    shares: Floats
    drawn: npt.NDArray[np.bool_]  # [A] whether the image was drawn at random, to check labels

    @classmethod
    def of(cls, answers: Any, n_classes: int) -> "Answers":
        """Return answers from a mapping of rows to a class or classes, or as they are."""
        if isinstance(answers, cls):
            return answers
        answers = answers or {}
        shares = np.zeros((len(answers), n_classes))
        for number, classes in enumerate(answers.values()):
            shares[number, classes] = 1
        rows = np.array(list(answers), dtype=np.int64)
        return cls(rows, shares, np.zeros(len(rows), dtype=bool))

    def select(self, mask: npt.NDArray[np.bool_]) -> "Answers":
        """Return some of the answers."""
        return Answers(self.rows[mask], self.shares[mask], self.drawn[mask])


class TopK(NamedTuple):
    """The likeliest classes of each row."""

    classes: Ints  # [N, K] the likeliest first
    probabilities: Floats  # [N, K]


class LabelModel:
    """Labels of N images of C classes, in scikit-learn's manner.

    >>> model = LabelModel().fit(image_features, {"model": votes})
    >>> model.labels_, model.confidence_
    """

    labels_: Ints  # [N]
    confidence_: Floats  # [N] probability of the label
    posterior_: TopK
    labellers_: dict[str, Labeller]
    reason_: str  # why the labels are those of a labeller; "" where they are not
    image_labels_: Ints | None  # [N] by the other images alone
    head_labels_: Ints | None  # [N] by the linear head of the first encoder, from other folds
    joint_head_labels_: Ints | None  # [N] by the linear head of all encoders, from other folds
    coef_: Floats  # [C, D] of the first encoder
    intercept_: Floats  # [C]
    joint_coef_: Floats  # [C, sum of D] of all encoders side by side
    joint_intercept_: Floats  # [C]
    # Of answers with the mark `drawn`, in their order, each learned without the answer
    held_out_rows_: Ints  # [J]
    held_out_labels_: Ints  # [J]
    held_out_confidence_: Floats  # [J]
    held_out_head_: Floats  # [J, C] probabilities by the linear head
    held_out_joint_head_: Floats  # [J, C]

    def fit(
        self,
        image_features: Floats | Sequence[Floats] | None,
        votes: Mapping[str, Any] | None = None,
        text_features: Floats | None = None,
        answers: Any = None,
        *,
        n_classes: int | None = None,
        groups: Ints | None = None,
    ) -> "LabelModel":
        """Learn labels of N images.

        Votes are classes [N] with -1 for none, probabilities [N, C] with rows of 0 for none, or a
        pair of classes [N, K] with -1 for none and their probabilities [N, K]. Images of one
        group, such as near-duplicates, are never on both sides of a fold.
        """
        features = _encoders(image_features)
        tables = dict(votes or {})
        c = _n_classes(tables, text_features, answers, n_classes)
        given = Answers.of(answers, c)
        n = len(features[0]) if features else _length(tables, given)
        dense = {name: _dense(table, n, c) for name, table in tables.items()}
        names = list(dense)
        all_votes = list(dense.values())
        if text_features is not None:
            names.insert(0, ZERO_SHOT)
            all_votes.insert(0, softmax(SCALE * features[0] @ text_features.T))
        has_texts = text_features is not None
        model = _Model(features, all_votes, c, has_texts, given)
        self._texts = text_features
        self.groups = np.arange(n) if groups is None else np.asarray(groups)
        self._model = model
        self.labels_ = model.r.argmax(axis=1)
        none = given.rows[~given.shares.any(axis=1)]
        if len(none):
            self.labels_[none] = model.predicted[none].argmax(axis=1)
        self.confidence_ = model.confidence()
        k = min(16, c)
        order = np.argsort(-model.r, axis=1, kind="stable")[:, :k]
        self.posterior_ = TopK(order, np.take_along_axis(model.r, order, axis=1))
        self.image_labels_ = model.q.argmax(axis=1) if features else None
        self.labellers_ = {}
        for number, name in enumerate(names):
            value, known = model.accuracy(number)
            accuracy = Interval(value, max(0.0, value - 0.05), min(1.0, value + 0.05))
            weight = float(model.weights(model.trust)[number].mean())
            self.labellers_[name] = Labeller(
                accuracy if known else None, known, weight, 0 if known else 371
            )
        self.reason_ = ""
        if model.trust == 0 and len(names) == 1:
            self.reason_ = f"Images do not predict the votes of {names[0]}: labels are its votes."
        self._fit_heads(features, model)
        self._hold_out(features, all_votes, c, has_texts, given)
        return self

    def _fit_heads(self, features: list[Floats], model: "_Model") -> None:
        self.head_labels_ = self.joint_head_labels_ = None
        if not features:
            return
        self.coef_, self.intercept_ = model.head(features[:1], self._texts)
        self.joint_coef_, self.joint_intercept_ = self.coef_, self.intercept_
        folds = self._folds()
        n = len(features[0])
        self.head_labels_ = np.empty(n, dtype=np.int64)
        for fold in range(FOLDS):
            w, b = model.head(features[:1], self._texts, folds != fold)
            part = folds == fold
            self.head_labels_[part] = (features[0][part] @ w.T + b).argmax(axis=1)
        self.joint_head_labels_ = self.head_labels_
        if len(features) > 1:
            self.joint_coef_, self.joint_intercept_ = model.head(features, self._texts)
            x = np.concatenate(features, axis=1)
            self.joint_head_labels_ = np.empty(n, dtype=np.int64)
            for fold in range(FOLDS):
                w, b = model.head(features, self._texts, folds != fold)
                part = folds == fold
                self.joint_head_labels_[part] = (x[part] @ w.T + b).argmax(axis=1)

    def _folds(self) -> Ints:
        """Return the fold [N] of each row; those of a group are in one."""
        _, number = np.unique(self.groups, return_inverse=True)
        order = np.random.default_rng(0).permutation(number.max() + 1)
        return np.asarray(order[number] % FOLDS)

    def _hold_out(
        self, features: list[Floats], votes: list[Floats], c: int, texts: bool, given: Answers
    ) -> None:
        rows = given.rows[given.drawn]
        self.held_out_rows_ = rows
        self.held_out_labels_ = np.zeros(len(rows), dtype=np.int64)
        self.held_out_confidence_ = np.zeros(len(rows))
        self.held_out_head_ = np.zeros((len(rows), c))
        self.held_out_joint_head_ = np.zeros((len(rows), c))
        if not len(rows):
            return
        folds = self._folds()
        for fold in np.unique(folds[rows]):
            left = given.select(~(given.drawn & (folds[given.rows] == fold)))
            model = _Model(features, votes, c, texts, left)
            part = folds[rows] == fold
            self.held_out_labels_[part] = model.r[rows[part]].argmax(axis=1)
            self.held_out_confidence_[part] = model.confidence()[rows[part]]
            if features:
                used = folds != fold
                w, b = model.head(features[:1], self._texts, used)
                self.held_out_head_[part] = softmax(features[0][rows[part]] @ w.T + b)
                w, b = model.head(features, self._texts, used)
                x = np.concatenate([one[rows[part]] for one in features], axis=1)
                self.held_out_joint_head_[part] = softmax(x @ w.T + b)

    def probabilities(self, rows: Any = slice(None)) -> Floats:
        """Return the posterior [n, C] of some training rows."""
        return np.asarray(self._model.r[rows])

    def without_answers(self, rows: Any = slice(None)) -> Floats:
        """Return the same, in which the answers about these rows themselves count for nothing."""
        return np.asarray(self._model.predicted[rows])

    def vote_probabilities(self, rows: Any = slice(None)) -> Floats:
        """Return the probabilities [n, C] of classes by the votes alone, 0 where there is none."""
        model = self._model
        v = len(model.votes)
        first = int(model.texts and v > 1)  # the texts are no votes of a labeller
        table = sum(model.sources[k][rows] for k in range(first, v))
        return softmax(table) * model.has[first:, rows].any(axis=0)[:, None]

    def predict(self, features: Floats | Sequence[Floats]) -> Ints:
        """Return the classes [n] of new images."""
        return np.asarray(self._logits(features).argmax(axis=1))

    def predict_proba(self, features: Floats | Sequence[Floats]) -> Floats:
        """Return the probabilities [n, C] of the classes of new images."""
        return softmax(self._logits(features))

    def _logits(self, features: Floats | Sequence[Floats]) -> Floats:
        if isinstance(features, np.ndarray):
            return np.asarray(features @ self.coef_.T + self.intercept_)
        x = np.concatenate(list(features), axis=1)
        return np.asarray(x @ self.joint_coef_.T + self.joint_intercept_)


def _encoders(features: Floats | Sequence[Floats] | None) -> list[Floats]:
    if features is None:
        return []
    several = [features] if isinstance(features, np.ndarray) else list(features)
    return [np.asarray(one, dtype=np.float32) for one in several]


def _n_classes(
    votes: Mapping[str, Any], texts: Floats | None, answers: Any, given: int | None
) -> int:
    if given is not None:
        return given
    if texts is not None:
        return len(texts)
    if isinstance(answers, Answers):
        return answers.shares.shape[1]
    most = 0
    for table in votes.values():
        if isinstance(table, tuple):
            most = max(most, int(np.max(table[0])) + 1)
        else:
            array = np.asarray(table)
            most = max(most, array.shape[1] if array.ndim == 2 else int(array.max()) + 1)
    return most


def _length(votes: Mapping[str, Any], answers: Answers) -> int:
    for table in votes.values():
        return len(table[0] if isinstance(table, tuple) else table)
    raise ValueError("LabelModel.fit needs image features or votes.")


def _dense(table: Any, n: int, c: int) -> Floats:
    """Return votes as probabilities [N, C]."""
    dense = np.zeros((n, c), dtype=np.float32)
    if isinstance(table, tuple):
        classes, probabilities = (np.asarray(one) for one in table)
        rows, places = np.nonzero((classes >= 0) & (probabilities > 0))
        np.add.at(dense, (rows, classes[rows, places]), probabilities[rows, places])
        return normalised(dense)
    array = np.asarray(table)
    if array.ndim == 2:
        return normalised(array.astype(np.float32))
    rows = np.flatnonzero(array >= 0)
    dense[rows, array[rows]] = 1
    return dense


def softmax(table: Floats) -> Floats:
    table = np.exp(table - table.max(axis=1, keepdims=True))
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def log(table):
    return np.log(np.maximum(table, TINY))


def normalised(table):
    return table / np.maximum(table.sum(axis=1, keepdims=True), TINY)


def pool(offset, weights, tables):
    """Return the log-linear pool of tables [n, C]."""
    return offset + sum(np.float32(a) * t for a, t in zip(weights, tables))


def first(table):
    """Return the largest entry of each row as a row of one 1, and rows of 0 as they are."""
    named = np.eye(table.shape[1], dtype=np.float32)[table.argmax(axis=1)]
    return named * (table.sum(axis=1, keepdims=True) > 0)


def agreement(one, other):
    """Return the agreement of two tables [n, C] beyond chance, as a share of what is possible."""
    chance = one.mean(axis=0) @ other.mean(axis=0)
    return max(0.0, ((one * other).sum(axis=1).mean() - chance) / max(1 - chance, 1e-3))


class Images:
    """Whitened features of one encoder, and the sums of the classes."""

    def __init__(self, features, clusters):
        self.raw = np.asarray(features, dtype=np.float32)
        self.clusters = clusters
        x = self.raw - self.raw.mean(axis=0)
        n, d = x.shape
        share = max(SHRINKAGE, d / (d + n))
        values, vectors = np.linalg.eigh(shrunken(x.T @ x / n, share))
        x = x @ (vectors * values**-0.5 @ vectors.T)
        self.x = x / max(np.linalg.norm(x, axis=1).mean(), 1e-6)

    def halves(self):
        """Return two views of the images: halves of the features, rotated at random."""
        d = self.x.shape[1]
        x = self.x @ np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0].astype(np.float32)
        one, other = copy.copy(self), copy.copy(self)
        one.x, other.x = x[:, : d // 2], x[:, d // 2 :]
        return one, other

    def learn(self, r):
        """Learn the classes from a posterior [N, C], with rows of 0 where nothing names an image."""
        sums = r.T @ self.x
        self.n = n = r.sum(axis=0)
        # The mean of the classes, so that a class with most of the images has a direction too.
        self.centre = (sums / (n + 1)[:, None]).sum(axis=0) / max((n / (n + 1)).sum(), 1e-9)
        self.sums = sums - n[:, None] * self.centre
        lengths = ((self.x - self.centre) ** 2).sum(axis=1)
        # Variance within over between classes, by the mean product of two images of one class.
        pairs = max((n**2).sum() - (r**2).sum(), TINY)
        between = ((self.sums**2).sum() - (r**2 * lengths[:, None]).sum()) / pairs
        total = (r.sum(axis=1) * lengths).sum() / max(r.sum(), TINY)
        self.kappa = min(1e3, max(1e-2, (total - between) / max(between, TINY)))

    def scores(self, r):
        """Return s [N, C], each image without its own part by the same posterior."""
        x = self.x - self.centre
        own, products = (x**2).sum(axis=1)[:, None], x @ self.sums.T
        squares = (self.sums**2).sum(axis=1) - 2 * r * products + r * r * own
        squares = np.maximum(squares, 1e-9)
        products = products - r * own
        if not self.clusters:
            return products / np.sqrt(squares)
        n = self.n - r + np.float32(self.kappa)
        return products / n - 0.5 * squares / n**2


def shrunken(covariance, share):
    """Return a covariance, scaled to a mean variance of 1 and shrunken towards the identity."""
    scale = max(np.diag(covariance).mean(), 1e-10)
    return (1 - share) * covariance / scale + share * np.eye(len(covariance), dtype=np.float32)


def discriminant(x, r):
    """Return directions [C, D] of the classes where the covariance within classes is the identity."""
    n = np.maximum(r.sum(axis=0), TINY)
    sums = r.T @ x
    within = (x * r.sum(axis=1)[:, None]).T @ x - sums.T @ (sums / n[:, None])
    weights = np.linalg.solve(shrunken(within / n.sum(), HEAD_SHRINKAGE), sums.T).T
    return weights / np.sqrt(np.maximum((weights * sums).sum(axis=1), 1e-9))[:, None]


def fit_weights(tables, targets, offset, weights, centre=0.0, precision=1e-3, steps=20):
    """Return weights >= 0 that make targets [n, C] likeliest, by Newton's method with halving."""
    weights = np.array(weights, dtype=float)
    if not tables:
        return weights
    size = targets.sum(axis=1)

    def value(q, w):
        return (targets * log(q)).sum() - 0.5 * precision * ((w - centre) ** 2).sum()

    q = softmax(pool(offset, weights, tables))
    best = value(q, weights)
    for _ in range(steps):
        slope = np.array([((targets - size[:, None] * q) * t).sum() for t in tables])
        slope = slope - precision * (weights - centre)
        means = [(q * t).sum(axis=1) for t in tables]
        curve = [[(size * ((q * s * t).sum(axis=1) - a * b)).sum() for t, b in zip(tables, means)]
                 for s, a in zip(tables, means)]  # fmt: skip
        step = np.linalg.solve(np.array(curve) + precision * np.eye(len(tables)), slope)
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


@dataclass
class _Model:
    """Images, votes [N, C] of each voter, and answers (rows, classes), learned together."""

    features: list
    votes: list
    n_classes: int
    texts: bool = False  # whether the first voter are class texts
    given: Answers | None = None

    def __post_init__(self):
        c, v, n = self.n_classes, len(self.votes), len((self.features or self.votes)[0])
        given = self.given or Answers.of(None, c)
        one = (given.shares > 0).sum(axis=1) == 1
        self.answers = given.rows[one], given.shares[one].argmax(axis=1)
        self.votes = [np.asarray(p, dtype=np.float32) for p in self.votes]
        self.first = [first(p) for p in self.votes]
        self.clusters = self.texts and v == 1
        self.images = [Images(x, self.clusters) for x in self.features]
        self.has = np.array([p.sum(axis=1) > 0 for p in self.votes]).reshape(v, n)
        self.overall = [(p.sum(axis=0) + 1 / c) / (p.sum() + 1) for p in self.votes]
        self.theta = [(0.9 * np.eye(c) + 0.1 * o).astype(np.float32) for o in self.overall]
        # Until errors are known, all voters are copies of one. The last source are the images.
        self.rho = np.eye(v + 1)
        self.rho[:v, :v] = 1
        self.exponents = np.ones(v + 1)
        self.b = np.full(len(self.images), 10.0 / max(1, len(self.images)))
        self.delta = np.zeros((v, c))
        self._look_at_voters()
        total = sum((max(g, 1e-6) * p for g, p in zip(self.gain, self.votes)), np.zeros((n, c)))
        self.r = self.put(normalised(total.astype(np.float32)))
        for _ in range(ROUNDS):
            self._round()

    def put(self, table):
        """Return a posterior [N, C] in which answers replace rows."""
        given = self.given
        if given is not None and len(given.rows):
            table = table.copy()
            table[given.rows] = normalised((table[given.rows] + 1e-9) * given.shares)
        return table

    def offset(self, r):
        table = np.log((r.sum(axis=0) + 1) / (r.sum() + self.n_classes)).astype(np.float32)
        return np.tile(table if self.clusters else table / 2, (len(r), 1))

    def tables(self, r):
        """Learn the images from a posterior, and return their scores."""
        for one in self.images:
            one.learn(r)
        return [one.scores(r) for one in self.images]

    def _look_at_voters(self):
        """Learn gain, accuracy and aim of each voter, and the trust in images, from votes as they are.

        The gain is the share of the information of the votes that images predict by them.
        """
        v = len(self.votes)
        self.gain, self.accuracies, self.aim = np.ones(v), np.full(v, np.nan), np.zeros(v)
        self.trust = self.right = 1.0
        if not self.images or not v:
            return
        named, sizes, views = np.zeros(v), np.zeros(v), self.images[0].halves()
        rows, classes = self.answers
        for k in range(v):
            self.gain[k], named[k], self.accuracies[k] = self._look_at(k, views)
            counts = self.votes[k].sum(axis=0)
            sizes[k] = np.log(counts[counts >= 0.5]).mean() if (counts >= 0.5).any() else 0.0
        bounded = np.arange(v) >= self.texts  # texts see what images see
        some = self.gain * bounded if (self.gain * bounded).any() else self.gain
        if not some.any():  # images predict no votes
            self.trust, self.right, self.aim[:], self.gain[:] = 0.0, 0.0, 1.0, 1e-6
            return
        share = some / some.sum()
        m, a = np.exp(share @ sizes), max(share @ self.accuracies, 0.05)
        fits = 1.0 if self.clusters else min(1.0, share @ named / a**2, 2 * share @ named) ** SHARPNESS
        enough = m / (m + (5 if self.clusters else 2))
        self.trust = fits * enough
        for k in np.flatnonzero(some * bounded):
            right, n = self.first[k][rows, classes][self.has[k, rows]], PRIOR_ACCURACY
            self.accuracies[k] = (n * self.accuracies[k] + right.sum()) / (n + len(right))
            self.aim[k] = 1 - self.trust * (1 - self.accuracies[k])
        said = some * bounded * self.has.sum(axis=1)
        right = said @ self.accuracies / max(said.sum(), TINY)
        self.right = 1 - (1 - right ** (2 - fits)) * enough**0.5

    def _look_at(self, k, views):
        """Return the gain of a voter, the share of its votes that q names, and its accuracy."""
        votes, has, p = self.put(self.votes[k]), self.has[k], self.votes[k][self.has[k]]
        blind = log(p @ self.overall[k]).sum()
        if len(p) < 2 or blind > -TINY:
            return 0.0, 0.0, 0.0
        tables, offset, b = [t[has] for t in self.tables(votes)], self.offset(votes)[has], self.b
        for _ in range(3):
            q = softmax(pool(offset, b, tables))
            b = fit_weights(tables, normalised(q * p), offset, b, steps=3)
        q = softmax(pool(offset, b, tables))
        gain = max(0.0, 1 - log((q * p).sum(axis=1)).sum() / blind)
        vote, sees = first(p), []
        for view in views:
            view.learn(votes)
            sees.append(softmax(pool(offset, b[:1], [view.scores(votes)[has]])))
        product = agreement(vote, sees[0]) * agreement(vote, sees[1])
        accuracy = min(0.99, np.sqrt(product / max(agreement(*sees), 1e-3)))
        named = (first(q) * vote).sum() / len(p)
        return gain, named, max(accuracy, named)

    def weights(self, trust):
        """Return w e [V + 1, N]."""
        speaks = np.vstack([self.has, np.ones((1, self.has.shape[1]))])
        w = speaks / np.maximum(self.rho @ speaks, 1)
        w[-1] *= trust
        return (w * self.exponents[:, None]).astype(np.float32)

    def likelihood(self, k):
        p = self.votes[k]
        table = log(p @ self.theta[k].T) + self.delta[k].astype(np.float32) * p
        return np.where(self.has[k][:, None], table, 0)

    def _round(self):
        v = len(self.votes)
        tables, offset = self.tables(self.r), self.offset(self.r)
        likelihoods = [self.likelihood(k) for k in range(v)]

        def joint(w):
            return w[v] * scores + sum(w[k] * likelihoods[k] for k in range(v))

        for _ in range(STEPS):
            w = self.weights(1.0 if self.clusters else self.trust)[:, :, None]
            scores = pool(offset, self.b, tables)
            q = softmax(scores)
            every = (g * one * normalised(q * p) for g, one, p in zip(self.gain, w, self.votes))
            self.b = fit_weights(tables, self.put(sum(every, 0 * q)), offset, self.b, steps=2)
            scores = pool(offset, self.b, tables)
            r = self.put(softmax(joint(w)))
            for k in range(v):
                self.theta[k] = self._confusion(k, r[self.has[k]])
                likelihoods[k] = self.likelihood(k)
            alone = self._alone()
            self.delta[np.setdiff1d(np.arange(v), alone)] = 0
            for k in alone:
                self._bound(k, joint(w), w[k, :, 0])
                likelihoods[k] = self.likelihood(k)
            self.rho = self._shared_errors(self.put(softmax(joint(w))), softmax(scores))
        w = self.weights(self.trust)[:, :, None] / self.exponents[:, None, None].astype(np.float32)
        self.sources = [*(w[k] * likelihoods[k] for k in range(v)), w[v] * scores]
        rows, classes = self.answers
        if len(rows):
            some, truth = [table[rows] for table in self.sources], np.eye(self.n_classes)[classes]
            self.exponents = fit_weights(some, truth, 0.0, self.exponents, 1.0, PRIOR_ANSWERS)
        self.q = softmax(scores)
        self.predicted = softmax(pool(0, self.exponents, self.sources))
        self.r = self.put(self.predicted)

    def _confusion(self, k, r):
        """Return theta by a posterior [n, C] of the images about which the voter speaks."""
        p, theta, c = self.votes[k][self.has[k]], self.theta[k], self.n_classes
        counts = theta * ((r / np.maximum(p @ theta.T, TINY)).T @ p)
        alone = k in self._alone()
        accuracy = self.aim[k] if alone else np.trace(counts) / max(counts.sum(), TINY)
        if self.texts and k == 0:  # soft votes say little of their own accuracy
            accuracy = max(accuracy, self.accuracies[0])
        prior = PRIOR * max(1.0, ENOUGH * c / max(1, len(p)))
        prior /= max(self.trust, 0.05) ** 2 if alone else 1
        base = accuracy * np.eye(c) + (1 - accuracy) * self.overall[k]
        return normalised(counts + prior * base).astype(np.float32)

    def _alone(self, texts=True):
        """Return the bounded voters without company: others that name classes and err apart."""
        gain, v = self.gain, len(self.votes)
        apart = (1 - self.rho[:v, :v]) * np.minimum(1, gain / np.maximum(gain, 1e-3)[:, None])
        apart = apart[:, int(self.texts and not texts) :]
        return np.flatnonzero((self.aim > 0) & (apart.sum(axis=1) < 0.5))

    def _bound(self, k, pooled, w):
        """Find delta >= 0 with which the votes of each class are right as often as they must be."""
        rows, c, w = np.flatnonzero(self.has[k]), self.n_classes, w[self.has[k]].astype(float)
        named = self.votes[k][rows].argmax(axis=1)
        one = np.clip(softmax(pooled[rows])[np.arange(len(rows)), named].astype(float), 1e-7, 1 - 1e-7)
        odds = np.log(one / (1 - one)) - self.delta[k][named] * w
        counts, low, high = np.bincount(named, minlength=c), np.zeros(c), np.full(c, 16.0)
        for _ in range(12):
            middle = (low + high) / 2
            right = 1 / (1 + np.exp(-odds - middle[named] * w))
            lacks = np.bincount(named, right, minlength=c) < counts * (1 - SLACK * (1 - self.aim[k]))
            low, high = np.where(lacks, middle, low), np.where(lacks, high, middle)
        self.delta[k] = low

    def _shared_errors(self, r, q):
        """Return the correlations [V + 1, V + 1] of errors, 0 where they are negative."""
        # First classes, so that a copy of the texts' first classes is a copy.
        tables, speaks = [*self.first, q], [*self.has, np.ones(len(r), dtype=bool)]
        errors = [p - r @ normalised(r[has].T @ p[has]) for p, has in zip(tables, speaks)]
        rho = np.eye(len(errors))
        for i, one in enumerate(errors):
            for j in range(i):
                both = speaks[i] & speaks[j]
                if both.sum() >= 10:
                    a, b = one[both], errors[j][both]
                    size = np.sqrt(max(np.vdot(a, a) * np.vdot(b, b), TINY))
                    rho[i, j] = rho[j, i] = max(0.0, np.vdot(a, b) / size)
        return rho

    def accuracy(self, k):
        """Return how right a voter is, and whether others tell: without company, three views do."""
        if k in self._alone():
            return self.accuracies[k], False
        rest = sum(self.sources) - sum(a * t for a, t in zip(self.rho[k], self.sources))
        has, (rows, classes) = self.has[k], self.answers
        right = self.first[k][rows, classes][has[rows]]
        value = (softmax(rest) * self.first[k]).sum() / max(has.sum(), 1)
        return (10 * value + right.sum()) / (10 + len(right)), True

    def confidence(self):
        """Return a mean of r and q, a half each before answers tell."""
        labels, i = self.r.argmax(axis=1), np.arange(len(self.r))
        by_r, by_q = self.r[i, labels], self.q[i, labels]
        if self.clusters or not self.images:
            return by_r * (1 + (self.accuracies[0] if self.clusters else 1)) / 2
        space, prior = by_r.mean() - by_q.mean(), 0.5
        if len(self._alone(texts=False)) and space > 1e-3:
            prior = min(1.0, max(0.0, (self.right - by_q.mean()) / space))
        rows, classes = self.answers
        each = self.predicted[rows].argmax(axis=1)
        shares = np.linspace(0, 1, 21)[:, None]
        sure = shares * self.predicted[rows, each] + (1 - shares) * self.q[rows, each]
        fit = np.log(np.clip(np.where(each == classes, sure, 1 - sure), 1e-3, 1)).sum(axis=1)
        best = shares[(fit - 8 * (shares[:, 0] - prior) ** 2).argmax()]
        return self.put(best * self.r + (1 - best) * self.q)[i, labels]

    def head(self, features, texts=None, used=slice(None)):
        """Return a linear classifier of features side by side.

        Weights of texts and discriminant are fitted to images that the latter has not seen. How
        frequent classes are among new images is not known.
        """
        raw, r = np.concatenate(features, axis=1)[used], self.r[used]
        r, raw = r[r.any(axis=1)], raw[r.any(axis=1)]
        x = raw - raw.mean(axis=0)
        weights = discriminant(x, r)
        bias = -weights @ raw.mean(axis=0)
        if texts is not None:
            wide = np.zeros((len(texts), raw.shape[1]), dtype=np.float32)
            wide[:, : texts.shape[1]] = texts
            own, fold = np.empty_like(r), np.arange(len(x)) % FOLDS
            for k in range(FOLDS):
                own[fold == k] = x[fold == k] @ discriminant(x[fold != k], r[fold != k]).T
            size = max(np.abs(own).mean(), 1e-9)
            a, b = fit_weights([own / size, SCALE * raw @ wide.T], r, self.offset(r), [3.0, 0.1])
            weights, bias = a / size * weights + b * SCALE * wide, a / size * bias
        return weights, bias
