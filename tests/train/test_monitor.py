import math

import pytest
import torch

from latteclip.train import monitor


def test_spread_equals_the_loop():
    torch.manual_seed(0)
    scores = torch.randn(5, 7)
    spread = monitor.spread(scores, torch.tensor(3.0))
    entropies, mean = [], [0.0] * 7
    for row in scores.tolist():
        weights = [math.exp(3 * score) for score in row]
        shares = [w / sum(weights) for w in weights]
        entropies.append(-sum(p * math.log(p) for p in shares))
        mean = [m + p / 5 for m, p in zip(mean, shares, strict=True)]
    assert spread["entropy"].item() == pytest.approx(sum(entropies) / 5, rel=1e-5)
    balance = -sum(p * math.log(p) for p in mean) / math.log(7)
    assert spread["class_balance"].item() == pytest.approx(balance, rel=1e-5)


def test_even_predictions_have_balance_one_and_a_single_class_zero():
    sure = monitor.spread(torch.eye(4), torch.tensor(100.0))
    assert sure["class_balance"].item() == pytest.approx(1, abs=1e-6)
    assert sure["entropy"].item() == pytest.approx(0, abs=1e-6)
    one = monitor.spread(torch.eye(4)[[2, 2, 2]], torch.tensor(100.0))
    assert one["class_balance"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "agreement", "collapsed"),
    [
        ([3, 1, 0, 0, 2], 0.8, False),
        ([3, 0, 0, 0, 2], 0.8, True),
        ([9, 9, 9, 9, 9], 0.2, True),
        ([9, 9, 9, 9, 9], 0.25, False),
    ],
)
def test_collapse_is_few_classes_or_little_agreement(counts, agreement, collapsed):
    found = monitor.collapse(torch.tensor(counts), agreement)
    assert bool(found) == collapsed
