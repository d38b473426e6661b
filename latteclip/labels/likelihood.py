"""Weights of predictors with which they make classes or votes likeliest.

Letters: n images, C classes.
"""

from collections.abc import Callable, Sequence

import torch

RIDGE = 1e-4  # on the weights: a constant predictor gets none
TINY = 1e-9


def pool(
    tables: Sequence[torch.Tensor],
    weights: torch.Tensor,
    offset: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Return the weighted sum of tables [n, C], and an offset [C] of each class."""
    pooled: torch.Tensor = torch.as_tensor(offset)
    for weight, table in zip(weights, tables, strict=True):
        pooled = pooled + weight * table
    return pooled


def fit_mixture(
    predictors: Sequence[torch.Tensor],
    votes: torch.Tensor,
    overall: torch.Tensor,
    offset: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, float]:
    """Return the weights and the share u with which u softmax(pool) + (1 - u) r is likeliest.

    Predictors are tables [n, C] like the votes, and r and the offset are [C].
    """

    def loss(free: torch.Tensor) -> torch.Tensor:
        share = free[-1].sigmoid()
        mixed = (
            share * pool(predictors, free[:-1], offset).softmax(dim=1)
            + (1 - share) * overall
        )
        return cross_entropy(votes, mixed) + RIDGE * free[:-1].square().sum()

    free = minimise(
        loss, torch.zeros(len(predictors) + 1, dtype=torch.float64), len(predictors)
    )
    return free[:-1], free[-1].sigmoid().item()


def fit_weights(
    predictors: Sequence[torch.Tensor],
    targets: torch.Tensor,
    start: torch.Tensor | None = None,
    *,
    offset: torch.Tensor | float = 0.0,
    confusion: torch.Tensor | None = None,
    n_known: int = 0,
    centre: torch.Tensor | float = 0.0,
    precision: float = RIDGE,
) -> torch.Tensor:
    """Return the weights with which softmax(pool), through a confusion [C, C], is likeliest.

    Predictors and targets are tables [n, C], and the offset is [C]. The last `n_known` targets are
    classes and not votes. The weights have a normal prior.
    """

    def loss(free: torch.Tensor) -> torch.Tensor:
        predicted = pool(predictors, free, offset).softmax(dim=1)
        seen = predicted if confusion is None else predicted @ confusion
        if n_known:
            seen = torch.cat([seen[:-n_known], predicted[-n_known:]])
        return cross_entropy(targets, seen) + precision * (free - centre).square().sum()

    first = torch.zeros(len(predictors), dtype=torch.float64) if start is None else start
    return minimise(loss, first, len(first))


def cross_entropy(targets: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows [n, C], in nats."""
    return -(targets * (predicted + TINY).log()).sum(dim=1).mean()


def minimise(
    loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, n_weights: int
) -> torch.Tensor:
    """Minimise a loss by L-BFGS, the first entries being weights, none of them negative."""
    active = torch.ones_like(start)
    while True:
        weights = descend(lambda free: loss(free * active), start * active) * active
        if not (weights[:n_weights] < 0).any():
            return weights
        active[weights[:n_weights].argmin()] = (
            0  # and the other predictors are fitted again
        )


def descend(
    loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor
) -> torch.Tensor:
    """Minimise a loss by L-BFGS."""
    free = start.requires_grad_()
    optimiser = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = loss(free)
        value.backward()
        return value.item()

    optimiser.step(closure)
    return free.detach()
