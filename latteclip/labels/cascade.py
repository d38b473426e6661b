"""Which images a dear voter is asked about: those whose label its answer would most likely change.

Not in the paper. The doubt about a label is the probability that it is wrong so far. Doubts are too
small where labels are surer than they are right. After a first round the answers tell: a logistic
regression gives the share of labels that they changed at each doubt (Platt 1999).

Letters: N images, A of them that were asked about.
"""

from typing import NamedTuple

import torch

from latteclip.labels.fusion import LabelModel
from latteclip.labels.label_sources import parts
from latteclip.labels.voter_model import JointFusion

LEAST = 1e-4  # doubt about a label, at least
# Ridge of the regression, which two equal answers would leave without a solution.
RIDGE = 0.01
STEPS = 30  # steps of Newton's method
FEWEST = 20  # answers from which a share of changed labels is learned


class Ranking(NamedTuple):
    """What answers about N images are expected to bring, by labels so far."""

    # [N] probability that an answer would change the label; 0: it was asked
    gains: torch.Tensor
    labels: torch.Tensor  # [N] before the image was asked about, or so far
    doubt: torch.Tensor  # [N] about that label
    answered: int = 0
    changed: int = 0  # labels that answers changed

    def order(self, seed: int) -> torch.Tensor:
        """Return the images to ask about next, the first one first."""
        return in_turn(self.gains, is_first=not self.answered, seed=seed)


def rank(
    joint: JointFusion,
    asked: torch.Tensor,
    answered: torch.Tensor,
    before: Ranking | None = None,
    unused: torch.Tensor | None = None,
) -> Ranking:
    """Rank N images, of which some were asked about [N] and have an answer [N].

    `before` is the ranking by which these were chosen. `unused` are the answers [N] if they do not
    count yet, for there are too few to tell what they are worth. Then they change no label, and
    what they would change is taken for changed.
    """
    labels = joint.fusion.labels
    doubt = doubts(joint.model)
    if before is None:
        return Ranking(doubt, labels, doubt)
    now = labels if unused is None else unused
    changed = (now != before.labels)[answered]
    gains = likely_changes(doubt, before.doubt[answered], changed)
    return Ranking(
        gains=gains.masked_fill(asked, 0.0),
        labels=torch.where(asked, before.labels, labels),
        doubt=torch.where(asked, before.doubt, doubt),
        answered=int(answered.sum()),
        changed=int(changed.sum()),
    )


def doubts(model: LabelModel) -> torch.Tensor:
    """Return the probability [N] that each label is wrong so far, 0 where a person answered."""
    best = [model.log_posterior(rows).amax(dim=1).exp() for rows in parts(model.n)]
    doubt = 1 - torch.cat(best)
    doubt = doubt.clamp(min=LEAST)
    doubt[model.answers.place >= 0] = 0.0
    return doubt


def likely_changes(
    doubt: torch.Tensor, asked: torch.Tensor, changed: torch.Tensor
) -> torch.Tensor:
    """Return the probability [N] that an answer would change each label, by its doubt [N].

    `asked` are the doubts [A] of labels before an answer, and `changed` says whether the answer
    changed the label [A]. A larger doubt has no smaller probability.
    """
    if len(asked) < FEWEST:
        return doubt
    inputs = torch.stack([torch.ones_like(asked), _logit(asked)], dim=1)  # [A, 2]
    weights = torch.zeros(2, dtype=torch.float64)
    ridge = RIDGE * torch.eye(2, dtype=torch.float64)
    for _ in range(STEPS):
        expected = (inputs @ weights).sigmoid()
        spread = expected * (1 - expected)
        hessian = inputs.T @ (spread[:, None] * inputs) + ridge
        gradient = inputs.T @ (changed.double() - expected) - RIDGE * weights
        weights = weights + torch.linalg.solve(hessian, gradient)
    changes = (weights[0] + weights[1].clamp(min=0) * _logit(doubt)).sigmoid()
    return torch.where(doubt > 0, changes, 0.0)


def _logit(doubt: torch.Tensor) -> torch.Tensor:
    return torch.logit(doubt.double().clamp(LEAST, 1 - LEAST))


def in_turn(gains: torch.Tensor, *, is_first: bool, seed: int = 0) -> torch.Tensor:
    """Return the images with a gain [N] in a random order, those with large gains mostly first.

    They are drawn by the roots of the gains, the weights with which a sample tells most (Neyman
    1934). In the first round half of them are drawn from all images alike, for labels may be
    surer than they are right.
    """
    weights = gains.clamp(min=0).sqrt()
    if is_first:
        total = weights.sum().clamp(min=LEAST)
        weights = weights / total + (gains > 0).double() / len(gains)
    # The largest of log p + Gumbel noise are a sample without replacement (Gumbel-top-k).
    draw = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(gains), generator=draw).double()
    noise = -(-uniform.log()).log()
    order = (weights.log() + noise).argsort(descending=True, stable=True)
    n_drawn = int((gains > 0).sum())
    return order[:n_drawn]
