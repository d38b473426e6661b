"""The best classes of images by their scores.

Letters: N images, C classes, D embedding width, K best classes kept.
"""

import torch

from latteclip.clip.classifier import Classifier
from latteclip.clip.feature_rows import Features, parts

ROWS = 2**14  # images whose scores are held at once


def best_classes(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best classes of each row [N, C], best first, and their scores, both [N, min(k, C)].

    Equal scores are ordered by class, so that the first column is always `scores.argmax(1)`.
    """
    best = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    indices, values = best.indices[:, :k], best.values[:, :k]
    # `topk` orders equal scores as it likes; only rows that have some are worth the sorting.
    ties = (best.values[:, 1:] == best.values[:, :-1]).any(dim=1)
    if ties.any():
        ordered = scores[ties].sort(dim=1, descending=True, stable=True)
        indices[ties] = ordered.indices[:, :k]
    return indices, values


def classify(
    features: Features, classifier: Classifier, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`best_classes` of images [N, D] under a classifier; ROWS of [N, C] at a time."""
    every = parts(len(features), ROWS)
    found = [best_classes(classifier.scores(features[rows]), k) for rows in every]
    indices, values = zip(*found, strict=True)
    return torch.cat(indices), torch.cat(values)
