import math

import torch
import torch.nn.functional as F

from latteclip.train.objectives import prototypes

B, C, D = 5, 7, 11
LABELS = torch.tensor([3, 0, 3, 6, 0])


def start(seed=0):
    torch.manual_seed(seed)
    return F.normalize(torch.randn(C, D), dim=1)


def update_in_loops(old, labels, values):
    new = []
    for c in range(len(old)):
        rows = [value for value, label in zip(values, labels, strict=True) if label == c]
        if not rows:
            new.append(old[c])
            continue
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        length = math.sqrt(sum(value * value for value in mean))
        new.append([value / length for value in mean])
    return new


def test_targets_equal_the_loops():
    old, mixed = start(), torch.randn(B, D)
    wanted = [
        [p + 0.3 * (m - p) for p, m in zip(old[label].tolist(), row, strict=True)]
        for label, row in zip(LABELS.tolist(), mixed.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        prototypes.targets(old, LABELS, mixed, alpha=0.3), torch.tensor(wanted)
    )


def test_gradient_of_targets_flows_only_through_the_mix():
    old, mixed = start().requires_grad_(), torch.randn(B, D, requires_grad=True)
    prototypes.targets(old, LABELS, mixed, alpha=0.3).sum().backward()
    assert old.grad is None
    torch.testing.assert_close(mixed.grad, torch.full((B, D), 0.3))


def test_targets_with_alpha_one_are_the_mix():
    mixed = torch.randn(B, D)
    torch.testing.assert_close(prototypes.targets(start(), LABELS, mixed, alpha=1.0), mixed)


def test_update_equals_the_loops():
    old, values = start(), torch.randn(B, D)
    wanted = update_in_loops(old.tolist(), LABELS.tolist(), values.tolist())
    torch.testing.assert_close(prototypes.update(old, LABELS, values), torch.tensor(wanted))


def test_a_class_that_does_not_occur_stays_bit_for_bit():
    old = start() * 1.5  # not of length one: any normalisation would show
    new = prototypes.update(old, LABELS, torch.randn(B, D))
    for c in range(C):
        assert torch.equal(new[c], old[c]) == (c not in LABELS)


def test_a_class_with_one_value_takes_its_direction():
    values = torch.randn(B, D)
    new = prototypes.update(start(), LABELS, values)
    torch.testing.assert_close(new[6], values[3] / values[3].norm())


def test_updated_prototypes_have_length_one_and_are_float32():
    new = prototypes.update(start(), LABELS, torch.randn(B, D).bfloat16())
    assert new.dtype == torch.float32
    torch.testing.assert_close(new.norm(dim=1), torch.ones(C))


def test_update_leaves_its_arguments_and_takes_no_gradient():
    old, values = start(), torch.randn(B, D, requires_grad=True)
    copy = old.clone()
    new = prototypes.update(old, LABELS, values)
    assert torch.equal(old, copy)
    assert not new.requires_grad
