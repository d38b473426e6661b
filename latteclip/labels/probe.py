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

LOGIT_SCALE = 10.0  # factor of features of length 1


def _side_by_side(models: Sequence[CentredFeatures], rows: Rows) -> torch.Tensor:
    """Return features [n, D] of length 1 of some images, those of all models side by side."""
    unit = [F.normalize(model.centred[rows].double(), dim=1) for model in models]
    return torch.cat(unit, dim=1) * (LOGIT_SCALE / math.sqrt(len(models)))


def _regression(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the weights [C, D] that make targets [n, C] likely, with a standard normal prior."""
    kernel = x @ x.T
    zeros = torch.zeros(len(x), targets.shape[1], dtype=torch.float64)

    def loss(dual: torch.Tensor) -> torch.Tensor:
        logits = kernel @ dual
        likelihood = (targets * logits.log_softmax(dim=1)).sum()
        return 0.5 * (dual * logits).sum() - likelihood

    return descend(loss, zeros).T @ x


def predict_held_out(
    models: Sequence[CentredFeatures], rows: torch.Tensor, truth: torch.Tensor
) -> torch.Tensor:
    """Return logits [A, C] of rows [A], each by the answers [A, C] of other folds."""
    x = _side_by_side(models, rows)
    fold = torch.arange(len(rows)) % FOLDS
    logits = torch.zeros_like(truth)
    for number in fold.unique():
        is_in = fold == number
        logits[is_in] = x[is_in] @ _regression(x[~is_in], truth[~is_in]).T
    return logits


@dataclass(frozen=True)
class Probe:
    """The regression on all answers, and how far it counts beside a posterior."""

    models: Sequence[CentredFeatures]
    weights: torch.Tensor  # [C, D]
    exponents: torch.Tensor  # [2] of the posterior and of the regression

    @classmethod
    def of(
        cls,
        models: Sequence[CentredFeatures],
        rows: torch.Tensor,
        truth: torch.Tensor,
        scores: torch.Tensor,
        prior: float,
    ) -> Self:
        """Learn from answers [A, C] about some rows [A], whose log-posterior are scores [A, C].

        The exponents make the answers likeliest, each predicted by the answers of other folds,
        under a normal prior at 1 and 0 of a precision.
        """
        factors = [scores, predict_held_out(models, rows, truth).log_softmax(dim=1)]
        centre = torch.tensor([1.0, 0.0], dtype=torch.float64)
        precision = prior / len(truth)
        exponents = fit_weights(factors, truth, centre, centre=centre, precision=precision)
        return cls(models, _regression(_side_by_side(models, rows), truth), exponents)

    def log_probabilities(self, rows: Rows) -> torch.Tensor:
        """Return log-probabilities [n, C] of some images by all answers."""
        return (_side_by_side(self.models, rows) @ self.weights.T).log_softmax(dim=1)

    def beside(self, scores: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return the scores [n, C] of the posterior and of the regression together."""
        posterior, regression = self.exponents.unbind()
        own = regression * self.log_probabilities(rows)
        return posterior * scores.log_softmax(dim=1) + own
