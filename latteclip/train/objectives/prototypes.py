"""Per-class prototypes with momentum (LatteCLIP, section 3.3).

Letters: M labelled targets, B batch, C classes, D embedding width.
"""

import torch
import torch.nn.functional as F


def targets(
    prototypes: torch.Tensor, labels: torch.Tensor, mixed: torch.Tensor, alpha: float
) -> torch.Tensor:
    """z_i(y) = P_y + alpha (m_i(y) - P_y), the prototypes taken as constants.

    Args:
        prototypes: [C, D].
        labels: [B] class of each image.
        mixed: [B, D] mixed text features, with gradient.
        alpha: 1 - momentum.

    Returns:
        [B, D], with gradient through `mixed`.
    """
    own = prototypes.detach()[labels]  # [B, D]
    return own + alpha * (mixed - own)


@torch.no_grad()
def update(prototypes: torch.Tensor, labels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean of each class's values, L2-normalised; a class that does not occur stays.

    Args:
        prototypes: [C, D] float32.
        labels: [M] class of each value.
        values: [M, D].

    Returns:
        New prototypes [C, D].
    """
    sums = torch.zeros_like(prototypes).index_add_(0, labels, values.detach().float())
    counts = prototypes.new_zeros(len(prototypes))  # [C]; `bincount` would wait for a GPU
    seen = counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype)) > 0
    # The length of a sum does not matter: normalise(sum) == normalise(mean).
    return torch.where(seen[:, None], F.normalize(sums, dim=-1), prototypes)
