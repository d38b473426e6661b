"""Learn a linear discriminant of image features from soft labels. Not in the paper.

Letters: N images, of which n are used, C classes, D embedding width.
"""

import numpy as np
import torch

from latteclip.clip.classifier import Features, parts
from latteclip.labels.image_classes import (
    HEAD_FOLDS,
    ROWS,
    Head,
    Heads,
    by_folds,
    fit_weights,
    fold_of,
)
from latteclip.labels.votes import Bools, Votes


def fit_discriminant(
    features: Features, labels: Votes, n_classes: int, used: Bools
) -> Head:
    """Return directions [C, D] and biases [C] of logits, by the images that are used [N].

    The scale of logits makes the labels likeliest, where images of other folds score each image.
    """
    rows = np.flatnonzero(used)
    folds = fold_of(labels.first[rows], None)
    sums = Heads(n_classes, features.shape[1])
    for part in parts(len(rows)):
        x = features[torch.from_numpy(rows[part])].numpy()
        sums.add(x, labels.dense(rows[part], n_classes), folds[part])
    heads = {fold: sums.head(fold) for fold in (None, *range(HEAD_FOLDS))}
    sample = slice(None, None, -(-len(rows) // ROWS))
    x = features[torch.from_numpy(rows[sample])].numpy()
    scores = by_folds(heads, x, folds[sample])
    unit = max(float(np.abs(scores).mean()), 1e-9)
    shares = labels.dense(rows[sample], n_classes)
    [scale] = fit_weights([scores / unit], shares, 0.0, [1.0]) / unit
    weights, bias = heads[None]
    return scale * weights, scale * bias
