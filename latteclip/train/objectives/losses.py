"""CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3)."""

import torch
import torch.nn.functional as F


def contrastive(
    image_features: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """L(v, z): mean of the cross-entropies over rows and columns, the identity as target.

    Args:
        image_features: v [B, D].
        targets: z [B, D], row i belongs to image i.
        scale: exp(logit_scale), a scalar.

    Returns:
        A float32 scalar.
    """
    logits = scale * image_features.float() @ targets.float().T  # [B, B]
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
