"""State how right a labeller is where that is known: by drawn answers, or by views of images."""

import math

import numpy as np

from latteclip.labels.guarantees import Interval, share_right
from latteclip.labels.posterior import Labelled
from latteclip.labels.votes import Answers, Bools, Ints

MIN_DRAWN = 20  # drawn answers about the images of a labeller that state its accuracy
# Images name a share A of the votes. Two sources of accuracy a that err apart agree on a^2.
MOST_SHARED = 1.12  # largest A / a^2 at which errors count as apart
MIN_ACCURACY = 0.8  # below which look-alikes are confused by images and labeller together
MIN_IMAGES = 10.0  # votes of a class, in the geometric mean
ERROR = 0.03  # of the estimate by views on real sets, and by the number of votes at most
WIDTH = 0.05  # half of the 95 % interval that the needed answers promise
Z = 1.96


def by_answers(labels: Ints, has: Bools, answers: Answers) -> Interval | None:
    """Return the share of a labeller's votes [N] that is right, by drawn and taught answers.

    Images that teach are chosen, so they stand for themselves. Drawn ones stand for the others.
    """
    rows = answers.rows
    spoke = has[rows]
    right = answers.shares[np.arange(len(rows)), labels[rows]] > 0
    drawn, taught = spoke & answers.drawn, spoke & ~answers.drawn
    n = int(drawn.sum())
    if n < MIN_DRAWN:
        return None
    return share_right(
        int(has.sum()),
        n,
        int((right & drawn).sum()),
        right=int((right & taught).sum()),
        wrong=int((~right & taught).sum()),
    )


def by_views(one: Labelled, is_bounded: bool) -> Interval | None:
    """Return the accuracy by two halves of the image features, where these err apart from votes."""
    a, n = one.accuracy, int(one.has.sum())
    if not is_bounded or not a >= MIN_ACCURACY or one.size < MIN_IMAGES:
        return None
    if not 1 / MOST_SHARED <= one.named_share / a**2 <= MOST_SHARED:
        return None
    sampling = Z * math.sqrt(a * (1 - a) / n)
    if sampling > ERROR:
        return None
    error = ERROR + sampling
    return Interval(a, max(0.0, a - error), min(1.0, a + error), n=0)


def answers_needed(votes: int) -> int:
    """Return how many drawn answers would estimate the accuracy of so many votes to 5 points."""
    wanted = (Z / WIDTH) ** 2 / 4
    return min(votes, math.ceil(wanted / (1 + (wanted - 1) / max(1, votes))))
