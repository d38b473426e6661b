"""Estimate how likely a label is right."""

from collections.abc import Sequence

import numpy as np

from latteclip.labels.image_classes import TINY
from latteclip.labels.labellers import MIN_DRAWN
from latteclip.labels.posterior import PRIOR, Posterior, Tables
from latteclip.labels.votes import Floats, Ints


class Confidence:
    """The probability that a label is right: a mean of the posterior and of images alone.

    Where images are few or say little, it is that of the labellers themselves, and unchecked. Class
    texts see what their images' encoder sees, so without votes answers alone check them.
    """

    def __init__(self, model: Posterior) -> None:
        self.model = model
        self.factor = 1.0
        self.share = 0.5
        is_taught = len(model.known[0]) >= MIN_DRAWN
        predict = any(one.gain > TINY for one in model.labellers)
        self.by_images = (predict and model.trust >= 0.5) or is_taught
        self.is_checked = bool(self.by_images and (is_taught or not model.texts_alone))
        if model.texts_alone:
            self.share = 1.0
            self._fit_factor()
        elif model.images:
            self._estimate_share()
            self._fit_share()
        else:
            others = model.kappa.sum(axis=1) / np.maximum((model.kappa > 0).sum(axis=1), 1)
            self.is_checked = len(others) > 2 and bool(others.mean() > 0.5)

    def _fit_factor(self) -> None:
        """Multiply by how often class texts are right over how sure they are, by answers."""
        rows, classes = self.model.known
        known = self.model.tables.r[rows]
        right = (known.argmax(axis=1) == classes).sum()
        right += PRIOR * (1 + self.model.labellers[0].accuracy) / 2
        self.factor = min(1.0, float(right / (known.max(axis=1).sum() + PRIOR)))

    def _estimate_share(self) -> None:
        """Give the mean confidence the mean accuracy of labellers that nobody accompanies."""
        model = self.model
        r, q = model.tables.r, model.tables.q
        at, labels = np.arange(len(r)), r.argmax(axis=1)
        by_q = float(q[at, labels].mean())
        space = float(r[at, labels].mean()) - by_q
        alone = [k for k in range(len(model.labellers)) if model.is_bounded(k)]
        if not alone or space <= 1e-3 or max(map(model.company, alone)) >= 0.5:
            return
        some = [model.labellers[k] for k in alone]
        sizes = np.array([one.gain * one.has.sum() for one in some])
        right = float(sizes @ [one.accuracy for one in some] / sizes.sum())
        self.share = float(np.clip((right - by_q) / space, 0, 1))

    def _fit_share(self) -> None:
        """Fit the share to answers, with a normal prior at the estimate."""
        rows, classes = self.model.known
        r, q = self.model.tables.r[rows], self.model.tables.q[rows]
        best, at = r.argmax(axis=1), np.arange(len(rows))
        shares = np.linspace(0, 1, 21)[:, None]
        sure = shares * r[at, best] + (1 - shares) * q[at, best]
        fit = np.log(np.clip(np.where(best == classes, sure, 1 - sure), 1e-3, 1)).sum(
            axis=1
        )
        self.share = float(shares[(fit - 8 * (shares[:, 0] - self.share) ** 2).argmax(), 0])

    def of(self, tables: Tables, votes: Sequence[Floats], labels: Ints) -> Floats:
        """Return the confidence [n] of labels."""
        at = np.arange(len(labels))
        by_r, by_q = tables.r[at, labels], tables.q[at, labels]
        if self.model.images and self.by_images:
            return np.asarray(self.factor * (self.share * by_r + (1 - self.share) * by_q))
        speak = np.zeros(len(labels))
        total = np.zeros(len(labels))
        for one in votes:
            speak += one.any(axis=1)
            total += one[at, labels]
        by_votes = np.where(speak > 0, total / np.maximum(speak, 1), by_r)
        if self.model.images or len(votes) == 1:
            return by_votes
        return np.asarray((by_r + by_votes) / 2)
