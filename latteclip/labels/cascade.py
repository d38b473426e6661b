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
    each = [
        expected_gain(model.log_posterior(rows).exp(), confusion) for rows in parts(model.n)
    ]
    gains = torch.cat(each)
    gains[asked | (model.answers.place >= 0)] = 0.0
    # The largest of log p + Gumbel noise are a sample without replacement (Gumbel-top-k).
    uniform = torch.rand(
        len(gains), generator=torch.Generator().manual_seed(int(asked.sum()))
    )
    keys = gains.clamp(min=0).log() - (-uniform.double().log()).log()
    chosen = keys.topk(min(size, int((gains > 0).sum()))).indices
    return chosen, float(gains[chosen].mean()) if len(chosen) else 0.0
