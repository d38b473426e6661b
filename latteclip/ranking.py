"""The best classes of images by their scores.

Letters: N images, C classes, K best classes kept.
"""

import torch


def best_classes(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best classes of each row [N, C], best first, and their scores, both [N, min(k, C)].

    Equal scores are ordered by class, so that the first column is always `scores.argmax(1)`.
    """
    ordered = scores.sort(dim=1, descending=True, stable=True)
    return ordered.indices[:, :k], ordered.values[:, :k]
