"""Estimate how likely a label is right."""

from collections.abc import Sequence

import numpy as np

from latteclip.labels.evidence import PRIOR
from latteclip.labels.image_classes import TINY
from latteclip.labels.posterior import Posterior, Tables
from latteclip.labels.votes import Floats, Ints


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
        rows, classes = self.model.known
        known = self.model.tables.r[rows]
        right = (known.argmax(axis=1) == classes).sum()
        right += PRIOR * (1 + self.model.labellers[0].accuracy) / 2
        self.factor = min(1.0, float(right / (known.max(axis=1).sum() + PRIOR)))

    def _fit_share(self) -> None:
        """Fit the share of the posterior to answers, with a normal prior at a half."""
        rows, classes = self.model.known
        r, q = self.model.tables.r[rows], self.model.tables.q[rows]
        best, at = r.argmax(axis=1), np.arange(len(rows))
        shares = np.linspace(0, 1, 21)[:, None]
        sure = shares * r[at, best] + (1 - shares) * q[at, best]
        fit = np.log(
            np.clip(np.where(best == classes, sure, 1 - sure), 1e-3, 1)
        ).sum(axis=1)
        self.share = float(
            shares[(fit - 8 * (shares[:, 0] - self.share) ** 2).argmax(), 0]
        )

    def of(self, tables: Tables, votes: Sequence[Floats], labels: Ints) -> Floats:
        """Return the confidence [n] of labels."""
        at = np.arange(len(labels))
        by_r, by_q = tables.r[at, labels], tables.q[at, labels]
        if self.model.images and self.by_images:
            return np.asarray(
                self.factor * (self.share * by_r + (1 - self.share) * by_q)
            )
        speak = np.zeros(len(labels))
        total = np.zeros(len(labels))
        for one in votes:
            speak += one.any(axis=1)
            total += one[at, labels]
        by_votes = np.where(speak > 0, total / np.maximum(speak, 1), by_r)
        if self.model.images or len(votes) == 1:
            return by_votes
        return np.asarray((by_r + by_votes) / 2)
