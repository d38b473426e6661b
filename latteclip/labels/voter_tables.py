"""Votes from what a voter answered, checked: class numbers, or probabilities of classes.

Letters: N images, C classes, K options of an image.
"""

import torch
import torch.nn.functional as F

from latteclip.core.errors import UserError
from latteclip.labels.label_sources import Votes

NO_VOTE = -1
TOLERANCE = 0.01  # largest error of a sum of probabilities


def votes_by_labels(
    voter: str, labels: torch.Tensor, n_images: int, n_classes: int
) -> Votes:
    """Return certain votes by class numbers [N], NO_VOTE where a voter is silent.

    UserError names the voter if a number is no class, or if there are too few or too many.
    """
    if labels.shape != (n_images,):
        raise UserError(
            f"The voter {voter!r} has {len(labels)} votes for {n_images} images; give one for each."
        )
    wrong = (labels < NO_VOTE) | (labels >= n_classes)
    if wrong.any():
        raise UserError(
            f"The voter {voter!r} votes for class {int(labels[wrong][0])}, but the classes are 0 "
            f"to {n_classes - 1}; give it the class list of this dataset."
        )
    has = labels != NO_VOTE
    numbers = labels.long().clamp(min=0)

    def probabilities(rows: slice | torch.Tensor) -> torch.Tensor:
        return F.one_hot(numbers[rows], n_classes).double() * has[rows, None]

    return Votes(has, probabilities)


def votes_by_probabilities(
    voter: str, table: torch.Tensor, n_images: int, n_classes: int
) -> Votes:
    """Return votes by probabilities [N, C], rows of 0 where a voter is silent.

    UserError names the voter and the first image whose probabilities are none.
    """
    if table.shape != (n_images, n_classes):
        raise UserError(
            f"The voter {voter!r} has probabilities of shape {tuple(table.shape)}, but there are "
            f"{n_images} images and {n_classes} classes; give it the class list of this dataset."
        )
    sums = table.sum(dim=1)
    is_silent = (table == 0).all(dim=1)
    is_right = (table >= 0).all(dim=1) & ((sums - 1).abs() <= TOLERANCE)
    wrong = (~(is_right | is_silent)).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"The voter {voter!r} gives image {row} probabilities that are negative, no numbers or "
            f"sum to {float(sums[row]):.3g}; they must sum to 1, or be 0 where it is silent."
        )

    def probabilities(rows: slice | torch.Tensor) -> torch.Tensor:
        values = table[rows].double()
        return values / values.sum(dim=1, keepdim=True).clamp(min=TOLERANCE)

    return Votes(~is_silent, probabilities)


def votes_by_options(
    options: torch.Tensor, log_probabilities: torch.Tensor, n_classes: int
) -> Votes:
    """Return votes by log-probabilities [N, K] of K options of each image, of which -1 is none.

    They are normalised over the options of the image, which is silent where it has none.
    """
    given = options >= 0
    numbers = options.clamp(min=0)
    has = given.any(dim=1)

    def probabilities(rows: slice | torch.Tensor) -> torch.Tensor:
        shares = log_probabilities[rows].double().masked_fill(~given[rows], -torch.inf)
        shares = shares.softmax(dim=1).nan_to_num(0.0)  # rows without options
        table = shares.new_zeros(len(shares), n_classes)
        return table.scatter_add_(1, numbers[rows], shares)

    return Votes(has, probabilities)
