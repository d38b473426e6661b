import math

import pytest
import torch

from latteclip.train.objectives.losses import contrastive

B, D = 5, 11


def loss_in_loops(features, targets, scale):
    n = len(features)
    logits = [
        [scale * sum(v * z for v, z in zip(row, target, strict=True)) for target in targets]
        for row in features
    ]

    def cross_entropy(scores, own):
        return math.log(sum(math.exp(score) for score in scores)) - scores[own]

    rows = sum(cross_entropy(logits[i], i) for i in range(n)) / n
    columns = sum(cross_entropy([logits[j][i] for j in range(n)], i) for i in range(n)) / n
    return (rows + columns) / 2


def test_loss_equals_the_loops():
    torch.manual_seed(0)
    features, targets = torch.randn(B, D), torch.randn(B, D)
    loss = contrastive(features, targets, torch.tensor(3.5))
    assert loss.item() == pytest.approx(
        loss_in_loops(features.tolist(), targets.tolist(), 3.5), rel=1e-5
    )


def test_each_image_is_matched_with_the_target_of_its_row():
    # Two images of one class have equal targets; each still counts the other as a mismatch.
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert contrastive(targets, targets, torch.tensor(40.0)).item() == pytest.approx(math.log(2))


def test_loss_is_nought_only_for_the_identity():
    features = torch.eye(B, D)
    assert contrastive(features, features, torch.tensor(100.0)).item() < 1e-6
    assert contrastive(features, features.roll(1, 0), torch.tensor(100.0)).item() > 50


def test_loss_of_half_precision_features_is_float32():
    features, targets = torch.randn(B, D).bfloat16(), torch.randn(B, D).bfloat16()
    assert contrastive(features, targets, torch.tensor(3.5)).dtype == torch.float32


def test_gradient_reaches_features_targets_and_scale():
    leaves = [torch.randn(B, D), torch.randn(B, D), torch.tensor(3.5)]
    for leaf in leaves:
        leaf.requires_grad_()
    contrastive(*leaves).backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)
