"""Label images by everything that names classes: one model. Not in the paper.

N images, C classes, V labellers: a person's file, a multimodal model, words of captions, CLIP's
class texts. S_c [D] is the sum of the whitened features of class c, without an image's own fold.

    images   q(c | x) = softmax_c(log(frequency_c) / 2 + sum_m b_m <x_m, S_mc / |S_mc|>), encoders m
    votes    P(v | c) = theta_cv, of first choices or probabilities (Dawid and Skene 1979)
    labels   log r(c) = w_x t log q(c | x) + sum_v w_v log P(vote_v | c) + constant

Each follows from the others in turn. theta and S are learned from r, and b from the votes. By
correlations rho of errors, w_v = 1 / sum_u max(0, rho_uv): a copy counts half. A person's answers
replace r, and fit an exponent of each term. Methods say what holds for few images, for class texts
alone, and for labels without images, which are Dawid and Skene's.

**How right a labeller is**, a, the likelihood does not tell: where images predict votes well, every
theta is as likely as theta = 1, to first order. Two halves of the features, rotated at random, are
two further views. If views that err apart agree beyond chance by kappa_ij = a_i a_j,

    a = (kappa_v1 kappa_v2 / kappa_12)^(1/2),  within A and u of the trust below.

It is lowered for labellers that agree less with others, which are not all right. Class texts see
what their encoder sees, so images predict them however wrong they are: votes and answers judge
them.

**Trust in images.** Of the votes, a share u is not random, and q names a share A. Full trust takes
half of the votes that are not random, and as many as two sources of accuracy a share, u a^2:

    t = min(1, A / (u max(a^2, 1/2)))^6 m / (m + 2),    m the mean number of votes of a class.

Where a labeller confuses look-alikes that images do not tell apart, t is near 0, and labels are the
votes. But random votes are overruled. Of what q names in place of votes, both halves name a share,
and of what q names as the vote does another one: s is the first over the second, at most 1. If a
vote is random with probability d, given q, the exponent of images is t + (1 - t) s d.

**Class texts** may be of an encoder of any scale. Beside votes that are righter, the power of their
probabilities follows from images that learn from the votes.

**Votes are right** in each class, by the mean of r, for at least 1 - 1.5 (1 - aim) with
aim = 1 - max(t, s (1 - u)) (1 - a): evidence delta >= 0 is added until they are. Otherwise whole
classes move into look-alikes. Beside labellers that err apart the bound is weaker, the righter they
are.

**Confidence** is a mean of r and q, by answers if there are some. It is checked where answers or a
tell how right a labeller is: a is told from 85 % on, below which images and votes confuse the same
look-alikes. Where images are not trusted it is that of the votes, times (1 + a) / 2. **New images**
are classified by a linear discriminant of the labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from latteclip.labels.evidence import decided
from latteclip.labels.image_classes import (
    HEAD_FOLDS,
    SCALE,
    Head,
    Heads,
    ImageClasses,
    LinearHead,
    Whitener,
    by_folds,
    fit_weights,
    fold_of,
)
from latteclip.labels.labellers import (
    FEW,
    Labelled,
    Labeller,
    answers_needed,
    by_answers,
    by_views,
)
from latteclip.labels.posterior import Confidence, Posterior
from latteclip.labels.votes import (
    NO_VOTE,
    ZERO_SHOT,
    Answers,
    Bools,
    Floats,
    Ints,
    Votes,
    count_classes,
    feature_arrays,
    parts,
    softmax,
    spaced,
)

SAMPLE = 2**24  # largest table [n, C] of the images from which the model learns
OPTIONS = 16  # the likeliest classes of an image that are stored


class LabelModel:
    """Labels of N images of C classes, in scikit-learn's manner.

    >>> model = LabelModel().fit(image_features, {"model": votes}, answers={0: 2, 7: [1, 3]})
    >>> model.labels_, model.confidence_, model.predict(new_features)
    """

    labels_: Ints  # [N]
    confidence_: Floats  # [N] probability of the label
    # Whether answers or a labeller's accuracy check the confidence.
    is_checked_: bool
    posterior_: Votes  # the likeliest classes of each image, the likeliest first
    labellers_: dict[str, Labeller]
    reason_: str  # why the labels are those of a labeller; "" where they are not
    # Classes that class texts alone name, of which no image has the label.
    without_evidence_: Ints
    # Of the first encoder, and if there are several, of all side by side.
    heads_: list[LinearHead]
    # Of the J answers with the mark `drawn`, in their order, each learned without the answer.
    held_out_labels_: Ints  # [J]
    held_out_confidence_: Floats  # [J]

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
        group, such as near-duplicates, are never on both sides of a fold. Raises ValueError for
        inputs that do not fit together.
        """
        self._features = feature_arrays(image_features)
        self._texts = None if text_features is None else np.asarray(text_features)
        self._votes = {
            name: Votes.of(table) for name, table in (votes or {}).items()
        }
        c = count_classes(self._votes, self._texts, answers, n_classes)
        self.n_classes = c
        given = Answers.of(answers, c)
        inputs: list[Any] = [*self._features, *self._votes.values()]
        if not inputs:
            raise ValueError("LabelModel.fit needs image features or votes.")
        self.n = len(inputs[0])
        self._check(inputs, given)
        self._whiteners = [Whitener(one) for one in self._features]
        self._sample = spaced(self.n, SAMPLE // c, given.rows)
        self._firsts = self._first_choices()
        self._folds = fold_of(self._keys(), groups)
        self._named = self._classes_with_evidence(given)
        self._model = self._learned(given)
        self._label_all(given)
        self._describe(given)
        self._fit_heads(self._hold_out(given))
        return self

    def _check(self, inputs: Sequence[Any], given: Answers) -> None:
        """Raise ValueError for inputs that do not fit together."""
        n, c, texts = self.n, self.n_classes, self._texts
        lengths = [len(one) for one in inputs]
        if min(lengths) == 0 or max(lengths) > min(lengths):
            raise ValueError(
                f"Features and votes have different lengths: {lengths}."
            )
        named = max(
            (one.options.max() for one in self._votes.values()), default=-1
        )
        if named >= c or c < 1:
            raise ValueError(
                f"There are {c} classes, and votes name classes up to {named}; set n_classes."
            )
        if texts is not None and (
            not self._features or texts.shape != (c, self._features[0].shape[1])
        ):
            raise ValueError(
                f"text_features are [{c}, D], beside image features [N, D]."
            )
        if ((given.rows < 0) | (given.rows >= n)).any():
            raise ValueError(f"Answers are about rows from 0 to {n - 1}.")

    def _first_choices(self) -> dict[str, Ints]:
        """Return the first choices [N] of all labellers, of class texts first."""
        votes = {name: one.first for name, one in self._votes.items()}
        if self._texts is None:
            return votes
        if ZERO_SHOT in votes:
            raise ValueError(f"{ZERO_SHOT} are the class texts; rename the votes.")
        zero_shot = [
            (self._features[0][rows] @ self._texts.T).argmax(axis=1)
            for rows in parts(self.n, self.n_classes)
        ]
        return {ZERO_SHOT: np.concatenate(zero_shot), **votes}

    def _keys(self) -> Ints:
        """Return a class [N] by which images are spread over folds."""
        keys = np.full(self.n, NO_VOTE)
        for name in [*self._votes, ZERO_SHOT]:
            keys = np.where(keys == NO_VOTE, self._firsts.get(name, NO_VOTE), keys)
        return keys

    def _classes_with_evidence(self, given: Answers) -> Bools:
        """Return which classes [C] a vote or an answer names; all, if there are few votes."""
        named: Bools = np.asarray(given.shares.any(axis=0))
        has = np.zeros(self.n, dtype=bool)
        for name, one in self._votes.items():
            has |= one.has
            named[self._firsts[name][one.has]] = True
        if has.mean() <= 0.5 or has.sum() < FEW * self.n_classes:
            named[:] = True
        of_texts = self._firsts.get(ZERO_SHOT, NO_VOTE)
        others = [NO_VOTE, *np.flatnonzero(named)]
        self.without_evidence_ = np.setdiff1d(of_texts, others)
        return named

    def _dense(self, rows: Any) -> list[Floats]:
        """Return the votes [n, C] of all labellers about some rows."""
        tables = [one.dense(rows, self.n_classes) for one in self._votes.values()]
        if self._texts is not None:
            features = np.asarray(self._features[0][rows], dtype=np.float32)
            cosines = features @ self._texts.T.astype(np.float32)
            tables.insert(0, softmax(SCALE * cosines))
        return tables

    def _learned(self, given: Answers) -> Posterior:
        """Return the model of a sample of the rows, and of these answers."""
        rows = self._sample
        images = [
            ImageClasses(white(one[rows]), self._folds[rows])
            for white, one in zip(self._whiteners, self._features, strict=True)
        ]
        return Posterior(
            images,
            self._dense(rows),
            self.n_classes,
            given.within(rows),
            has_texts=self._texts is not None,
            named=self._named,
        ).learn()

    def _scores(self, model: Posterior, rows: Any) -> list[Floats]:
        return [
            images.scores(white(one[rows]), self._folds[rows])
            for images, white, one in zip(
                model.images, self._whiteners, self._features, strict=True
            )
        ]

    def _label_all(self, given: Answers) -> None:
        """Label all rows in parts."""
        n, c, model = self.n, self.n_classes, self._model
        k = min(OPTIONS, c)
        self.labels_ = np.zeros(n, dtype=np.int64)
        self.confidence_ = np.zeros(n)
        classes, shares = np.zeros((n, k), np.int32), np.zeros((n, k), np.float32)
        place = np.full(n, -1)
        place[given.rows] = np.arange(len(given.rows))
        confidence = Confidence(model)
        for rows in parts(n, c):
            votes = self._dense(rows)
            tables = model.of(self._scores(model, rows), votes)
            asked = np.flatnonzero(place[rows] >= 0)
            r = decided(tables.r, asked, given.shares[place[rows][asked]])
            is_any = r.any(axis=1, keepdims=True)
            self.labels_[rows] = np.where(is_any, r, tables.r).argmax(axis=1)
            sure = confidence.of(tables, votes, self.labels_[rows])
            sure[asked] = r[asked, self.labels_[rows][asked]]
            self.confidence_[rows] = sure
            best = np.argsort(-r, axis=1, kind="stable")[:, :k]
            classes[rows], shares[rows] = best, np.take_along_axis(r, best, axis=1)
        self.posterior_ = Votes(classes, shares)

    def _describe(self, given: Answers) -> None:
        """State the accuracy of labellers where it is identified, and why nothing was gained."""
        model = self._model
        weights = model.weights(model.trust, model.has)
        self.labellers_, self.reason_ = {}, ""
        self.is_checked_ = model.is_taught
        unasked = np.ones(self.n, dtype=bool)
        unasked[given.rows] = False
        for k, (name, labels) in enumerate(self._firsts.items()):
            one, has = model.labellers[k], labels != NO_VOTE
            accuracy = by_answers(labels, has, given)
            if accuracy is None and model.is_bounded(k) and model.trust >= 0.5:
                accuracy = by_views(one)
            weight = float(weights[k].mean() * model.exponents[k])
            needed = 0 if accuracy else answers_needed(int(has.sum()))
            self.labellers_[name] = Labeller(accuracy, weight, needed)
            self.is_checked_ |= accuracy is not None
            is_other = has & unasked & (labels != self.labels_)
            if has.any() and not is_other.any() and not self.reason_:
                self.reason_ = (
                    f"Each vote of {name} is the label: {self._why(one)}."
                )

    def _why(self, one: Labelled) -> str:
        """Return why the labels are those of a labeller."""
        model = self._model
        if not model.images:
            return (
                "there are no image features, and no other labeller changes them"
            )
        if not one.tells:
            return "similar images do not have similar labels by it"
        if model.trust < 0.5 <= model.fits:
            return "there are too few images of a class to learn from"
        if model.trust < 0.5:
            return f"the images name only {100 * one.named_share:.0f} % of what it names"
        return "the images name what it names"

    def _fit_heads(self, held_out: Mapping[int, Floats]) -> None:
        """Learn the linear heads, given the held-out probabilities [J, C] of each."""
        self.heads_ = []
        every = list(parts(self.n, self.n_classes))
        r = self.probabilities(self._sample)
        for encoders, by_head in held_out.items():
            labelled = ((rows, self.probabilities(rows)) for rows in every)
            heads = self._heads(encoders, self._model, labelled, r)
            labels = [
                by_folds(
                    heads, self._side_by_side(encoders, rows), self._folds[rows]
                ).argmax(axis=1)
                for rows in every
            ]
            self.heads_.append(
                LinearHead(*heads[None], np.concatenate(labels), by_head)
            )

    def _side_by_side(self, encoders: int, rows: Any) -> Floats:
        """Return the features [n, D] of some rows by the first encoders."""
        some = [
            np.asarray(one[rows], np.float32) for one in self._features[:encoders]
        ]
        return np.concatenate(some, axis=1)

    def _heads(
        self,
        encoders: int,
        model: Posterior,
        labelled: Iterable[tuple[Any, Floats]],
        r: Floats,
    ) -> dict[int | None, Head]:
        """Learn heads of images and texts by the fold that they leave out.

        Images are `labelled` in parts: some rows and their posterior. The weights make that of the
        sample, r, likeliest.
        """
        x = self._side_by_side(encoders, self._sample)
        sums = Heads(self.n_classes, x.shape[1])
        for rows, shares in labelled:
            sums.add(self._side_by_side(encoders, rows), shares, self._folds[rows])
        heads = {fold: sums.head(fold) for fold in (None, *range(HEAD_FOLDS))}
        texts = np.zeros((self.n_classes, x.shape[1]), dtype=np.float32)
        if self._texts is not None:
            texts[:, : self._texts.shape[1]] = SCALE * self._texts
        by_images = by_folds(heads, x, self._folds[self._sample])
        size = max(float(np.abs(by_images).mean()), 1e-9)
        tables: list[Floats] = [
            by_images / np.float32(size),
            x @ texts.T - model.lean,
        ]
        a, b = fit_weights(tables, r, model.offset, [3.0, 0.1])
        a /= size
        constant = model.frequencies - b * model.lean
        return {
            fold: (a * w + b * texts, a * bias + constant)
            for fold, (w, bias) in heads.items()
        }

    def _hold_out(self, given: Answers) -> dict[int, Floats]:
        """Label the images of drawn answers by models that do not know their answers.

        Returns the probabilities [J, C] of linear heads by the number of their encoders.
        """
        rows = given.rows[given.drawn]
        self.held_out_labels_ = np.zeros(len(rows), dtype=np.int64)
        self.held_out_confidence_ = np.zeros(len(rows))
        numbers = sorted({1, len(self._features)}) if self._features else []
        by_heads = {
            encoders: np.zeros((len(rows), self.n_classes)) for encoders in numbers
        }
        folds = self._folds[rows] % HEAD_FOLDS
        for fold in np.unique(folds):
            part = folds == fold
            some = rows[part]
            model = self._learned(given.select(~np.isin(given.rows, some)))
            votes = self._dense(some)
            tables = model.of(self._scores(model, some), votes)
            labels = tables.r.argmax(axis=1)
            self.held_out_labels_[part] = labels
            self.held_out_confidence_[part] = Confidence(model).of(
                tables, votes, labels
            )
            for encoders, by_head in by_heads.items():
                heads = self._heads(
                    encoders, model, [(self._sample, model.r)], model.r
                )
                weights, bias = heads[int(fold)]
                x = self._side_by_side(encoders, some)
                by_head[part] = softmax(x @ weights.T + bias)
        return by_heads

    def probabilities(self, rows: Any = slice(None)) -> Floats:
        """Return the posterior [n, C] of some training rows, of their likeliest classes."""
        return self.posterior_.dense(rows, self.n_classes)

    def vote_probabilities(self, rows: Any = slice(None)) -> Floats:
        """Return the probabilities [n, C] of classes by the votes alone, 0 where there is none."""
        model, rows = self._model, np.arange(self.n)[rows]
        votes = self._dense(rows)
        terms = model.of(self._scores(model, rows), votes).terms
        # Texts are no votes of a labeller.
        first = int(model.has_texts and len(votes) > 1)
        total = np.zeros((len(rows), self.n_classes))
        has = np.zeros(len(rows), dtype=bool)
        for term, table in zip(terms[first:], votes[first:], strict=True):
            total += term
            has |= table.any(axis=1)
        return np.asarray(softmax(total) * has[:, None])

    def predict(self, features: Floats | Sequence[Floats]) -> Ints:
        """Return the classes [n] of new images, by a list of features those of all encoders."""
        return np.asarray(self._logits(features).argmax(axis=1))

    def predict_proba(self, features: Floats | Sequence[Floats]) -> Floats:
        """Return the probabilities [n, C] of the classes of new images."""
        return softmax(self._logits(features))

    def _logits(self, features: Floats | Sequence[Floats]) -> Floats:
        some = feature_arrays(features)
        head = self.heads_[0 if len(some) == 1 else -1]
        return head.logits(np.concatenate(some, axis=1))
