"""A logistic regression on a person's answers alone. Not in the paper.

Where answers are many, a regression on them knows what the model of votes does not. How far it
counts beside that model is fitted to the answers, each of which is predicted without its fold.

Letters: A answers, C classes, D width of the features of all models side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F

from latteclip.labels.label_sources import CentredFeatures, Rows
from latteclip.labels.likelihood import descend, fit_weights
from latteclip.labels.prototypes import FOLDS

LOGIT_SCALE = 10.0  # of features of length 1


def _side_by_side(models: Sequence[CentredFeatures], rows: Rows) -> torch.Tensor:
    """Return features [n, D] of length 1 of some images, those of all models side by side."""
    found = [F.normalize(model.centred[rows].double(), dim=1) for model in models]
    return torch.cat(found, dim=1) * (LOGIT_SCALE / math.sqrt(len(models)))


def _regression(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the weights [C, D] that make targets [n, C] likely, with a standard normal prior."""
    kernel = x @ x.T
    zeros = torch.zeros(len(x), targets.shape[1], dtype=torch.float64)

    def loss(dual: torch.Tensor) -> torch.Tensor:
        logits = kernel @ dual
        likelihood = (targets * logits.log_softmax(dim=1)).sum()
        return 0.5 * (dual * logits).sum() - likelihood

    return descend(loss, zeros).T @ x


@dataclass(frozen=True)
class Probe:
    """The regression on all answers, and its predictions of answers that it did not see."""

    models: Sequence[CentredFeatures]
    weights: torch.Tensor  # [C, D]
    truth: torch.Tensor  # [A, C] shares of the classes
    held_out: torch.Tensor  # [A, C] logits, by the answers of other folds

    @classmethod
    def of(
        cls, models: Sequence[CentredFeatures], rows: torch.Tensor, truth: torch.Tensor
    ) -> Self:
        """Learn from answers [A, C] about some rows [A]."""
        x = _side_by_side(models, rows)
        fold = torch.arange(len(rows)) % FOLDS
        held_out = torch.zeros_like(truth)
        for number in fold.unique():
            is_in = fold == number
            weights = _regression(x[~is_in], truth[~is_in])
            held_out[is_in] = x[is_in] @ weights.T
        return cls(models, _regression(x, truth), truth, held_out)

    def log_probabilities(self, rows: Rows) -> torch.Tensor:
        """Return log-probabilities [n, C] of some images by all answers."""
        return (_side_by_side(self.models, rows) @ self.weights.T).log_softmax(dim=1)

    def exponents(self, scores: torch.Tensor, prior: float) -> torch.Tensor:
        """Return the exponents [2] of log-probabilities [A, C] of the answered images and of these.

        They make the answers likeliest, under a normal prior at 1 and 0 of a precision.
        """
        centre = torch.tensor([1.0, 0.0], dtype=torch.float64)
        factors = [scores, self.held_out.log_softmax(dim=1)]
        precision = prior / len(self.truth)
        return fit_weights(factors, self.truth, centre, centre=centre, precision=precision)
