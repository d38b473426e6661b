"""Which images a dear voter is asked about: those whose label its vote would most likely change.

Not in the paper. Letters: n images, C classes, K likeliest classes of an image.
"""

import torch

from latteclip.clip.classifier import best_classes
from latteclip.labels.fusion import LabelModel
from latteclip.labels.label_sources import parts
from latteclip.labels.prototypes import KEPT

EXPECTED = 0.9  # share of right votes of a voter of which nothing is known yet


def expected_gain(table: torch.Tensor, confusion: torch.Tensor) -> torch.Tensor:
    """Return by how much a vote is expected to raise the probability [n] of the best class.

    The posterior before the vote is a table [n, C] and the confusion matrix of the voter [C, C].
    A vote for a class outside of the K likeliest ones is taken to change nothing.
    """
    classes, shares = best_classes(table, min(KEPT, table.shape[1]))
    pairs = confusion[
        classes[:, :, None], classes[:, None, :]
    ]  # [n, K, K] by class and vote
    joint = shares[:, :, None] * pairs
    return (joint.amax(dim=1) - joint[:, 0]).sum(dim=1)


def unknown_voter(n_classes: int) -> torch.Tensor:
    """Return the confusion matrix [C, C] that is expected of a voter that was not asked yet."""
    eye = torch.eye(n_classes, dtype=torch.float64)
    return EXPECTED * eye + (1 - EXPECTED) / n_classes


def images_to_ask(
    model: LabelModel, asked: torch.Tensor, confusion: torch.Tensor, size: int
) -> tuple[torch.Tensor, float]:
    """Return images [size] drawn with probabilities as their expected gains, and the mean gain.

    The largest gains alone would be images of a few classes while little is known. Images that
    were asked about [N], and those that a person answered, are left out.
    """
    gains = expected_gains(model, confusion)
    gains[asked] = 0.0
    chosen = in_turn(gains, seed=int(asked.sum()))[:size]
    return chosen, float(gains[chosen].mean()) if len(chosen) else 0.0


def expected_gains(model: LabelModel, confusion: torch.Tensor) -> torch.Tensor:
    """Return the expected gain [N] of a vote about each image, 0 where a person answered."""
    each = [
        expected_gain(model.log_posterior(rows).exp(), confusion) for rows in parts(model.n)
    ]
    gains = torch.cat(each)
    gains[model.answers.place >= 0] = 0.0
    return gains


def in_one_round(
    model: LabelModel, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gains [N], and the images with a gain in the order in which to ask in one round.

    The gain is that of a right answer: the probability that the label is wrong. It is 0 for images
    that were asked about [N]. As labels may be surer than they are right, images are drawn by the
    roots of the gains, the weights with which a sample tells most (Neyman 1934).
    """
    gains = expected_gains(model, torch.eye(model.n_classes, dtype=torch.float64))
    gains[asked] = 0.0
    return gains, in_turn(gains.clamp(min=0).sqrt(), seed=int(asked.sum()))


def in_turn(gains: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return the images with a gain [N] in a random order, those with large gains mostly first."""
    # The largest of log p + Gumbel noise are a sample without replacement (Gumbel-top-k).
    uniform = torch.rand(len(gains), generator=torch.Generator().manual_seed(seed))
    keys = gains.clamp(min=0).log() - (-uniform.double().log()).log()
    order = keys.argsort(descending=True, stable=True)
    return order[: int((gains > 0).sum())]
