"""Read the votes of labellers, tables CLASS_SCORES.

Letters: N images, C classes, K options of an image.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.labels.label_model import TopK
from latteclip.labels.votes import Floats, Ints

ITERATIONS = 50  # after which means of images and of classes have converged


@dataclass
class VotesTableMetadata:
    """The metadata of the votes of a labeller that write_votes wrote."""

    classnames: list[str]
    labeller: str
    kind: str
    source: str  # the user's file, or the model
    leaked: bool = False  # whether the captioner read the pseudo-labels


def read_votes(
    path: str, image_ids: pa.ChunkedArray, *, without_bias: bool = False
) -> TopK:
    """Return the votes of N images in a CLASS_SCORES table, normalised over their options.

    `without_bias` subtracts the mean score of each class: the likelihood of an answer contains how
    common the answer is, whatever the image shows.
    """
    options, scores = read_class_scores(path, image_ids)
    if without_bias:
        scores = scores - _class_means(options, scores)[options]
    given = options >= 0
    scores = np.where(given, scores, -np.inf)
    best = scores.max(axis=1, keepdims=True)
    best[~np.isfinite(best)] = 0
    shares = np.exp(scores - best)
    totals = shares.sum(axis=1, keepdims=True)
    return TopK(options, (shares / np.maximum(totals, 1e-12)).astype(np.float32))


def first_classes(votes: TopK) -> Ints:
    """Return the likeliest class [N] of each image, -1 without a vote; ties go to the first."""
    best = votes.probabilities.max(axis=1, keepdims=True)
    is_best = (votes.probabilities == best) & (votes.classes >= 0)
    last = np.iinfo(np.int64).max
    first = np.where(is_best, votes.classes, last).min(axis=1)
    return np.where(first == last, -1, first).astype(np.int32)


def read_class_scores(path: str, image_ids: pa.ChunkedArray) -> tuple[Ints, Floats]:
    """Return the options of N images and their log-probabilities, from a CLASS_SCORES table.

    Both are [N, K], int64 and float32. Where an image has fewer options than K, which is at least
    1, the class is -1 and the score minus infinity. UserError names images that the table lacks.
    """
    classes, values = (
        tables.lookup_column(path, tables.CLASS_SCORES, "image_id", name, image_ids)
        for name in ("options", "log_probabilities")
    )
    lengths = pc.fill_null(pc.list_value_length(classes), 0).to_numpy()
    shape = len(lengths), max(1, lengths.max(initial=0))
    options = np.full(shape, -1, np.int64)
    scores = np.full(shape, -np.inf, np.float32)
    given = np.arange(shape[1]) < lengths[:, None]  # [N, K]
    options[given] = pc.list_flatten(classes).to_numpy()
    scores[given] = pc.list_flatten(values).to_numpy()
    return options, scores


def _class_means(options: Ints, scores: Floats) -> Floats:
    """Return the effects [C] of classes on finite scores [N, K], beside those of images.

    They are alternating means: where images have different options, the mean scores of a class
    alone would contain how good the other options were.
    """
    given = (options >= 0) & np.isfinite(scores)
    owners, _ = given.nonzero()
    classes = options[given]
    values = scores[given].astype(np.float64)
    n_classes = int(options.max(initial=0)) + 1
    per_class = np.bincount(classes, minlength=n_classes).clip(min=1)
    per_image = given.sum(axis=1).clip(min=1)
    means = np.zeros(n_classes)
    for _ in range(ITERATIONS):
        values -= (np.bincount(owners, values, len(scores)) / per_image)[owners]
        step = np.bincount(classes, values, n_classes) / per_class
        means += step
        values -= step[classes]
    return means.astype(np.float32)
