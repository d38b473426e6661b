"""What can be said about a training without labels: how its predictions spread and agree.

Letters: B batch, C classes.
"""

import math

import torch

MIN_CLASSES = 0.5  # share of the classes that a sound model predicts
MIN_AGREEMENT = 0.25  # with the pseudo-labels; chance is 1 / C


def spread(scores: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """How sure predictions are of an image, and how evenly they fall on the classes.

    Args:
        scores: [B, C] cosines.
        scale: exp(logit_scale), a scalar.

    Returns:
        entropy: mean over images of the entropy of softmax(scale * scores), in nats.
        class_balance: entropy of the mean prediction over log C: 1 where every class is predicted
            as often as the others, 0 where all fall on one class.
    """
    predicted = (scale * scores).softmax(dim=1)  # [B, C]
    return {
        "entropy": _entropy(predicted).mean(),
        "class_balance": _entropy(predicted.mean(dim=0)) / math.log(scores.shape[1]),
    }


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in nats."""
    entropies: torch.Tensor = torch.special.entr(probabilities)
    return entropies.sum(dim=-1)


def collapse(counts: torch.Tensor, agreement: float) -> str | None:
    """What looks collapsed, in words, or None.

    Args:
        counts: [C] how often each class was predicted in an epoch.
        agreement: share of its images whose prediction is their pseudo-label.
    """
    predicted = int((counts > 0).sum())
    if predicted < MIN_CLASSES * len(counts):
        return f"only {predicted} of {len(counts)} classes are predicted"
    if agreement < MIN_AGREEMENT:
        return f"only {agreement:.0%} of the predictions agree with the pseudo-labels"
    return None
