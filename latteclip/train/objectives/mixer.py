"""The dynamic feature mixer: a text counts as much as it tells classes apart.

LatteCLIP (arXiv 2410.08211), section 3.3. Letters: K kinds of text, B batch, C classes,
D embedding width.
"""

import torch

MARGIN_FLOOR = 1e-6


@torch.no_grad()
def margins(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """w(u): the largest minus the second largest similarity to the prototypes, plus a floor.

    Args:
        features: [..., D] text features.
        prototypes: [C, D] with C >= 2.

    Returns:
        [...] weights, at least `MARGIN_FLOOR`.
    """
    best = (features @ prototypes.T).topk(2, dim=-1).values  # [..., 2]
    return best[..., 0] - best[..., 1] + MARGIN_FLOOR


def mix(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the kinds of text: one weight per text per image.

    Args:
        features: [K, B, D].
        weights: [K, B], not negative; each image has a positive one.

    Returns:
        [B, D], not normalised.
    """
    return (weights[:, :, None] * features).sum(dim=0) / weights.sum(dim=0)[:, None]
