"""Several voters: promises about labels, weights and estimates, on worlds whose truth is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.worlds import World, generator

from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import NO_VOTE, LabelledRows, label_votes
from latteclip.labels.voter_estimates import (
    ZERO_SHOT,
    estimate_voters,
    fuse_counted,
    gains_of_voters,
)
from latteclip.labels.voter_model import (
    families,
    family_weights,
    fuse_voters,
    zero_shot_labels,
)

LOSS = 0.003  # share of labels by which a rule may be below its input


def voter(world, right, *, seed, seen=1.0):
    """Labels of a voter that errs by chance, and is silent for a part of the images."""
    draw = generator(seed)
    n, c = len(world.classes), world.n_classes
    wrong = (world.classes + torch.randint(1, c, (n,), generator=draw)) % c
    labels = torch.where(torch.rand(n, generator=draw) < right, world.classes, wrong)
    return torch.where(torch.rand(n, generator=draw) < seen, labels, NO_VOTE)


def fused(world, **labels):
    votes = {name: label_votes(one, world.n_classes) for name, one in labels.items()}
    return fuse_voters(world.images(), votes)


@pytest.fixture(scope="module")
def world():
    return World.of(noise=0.6, text_noise=0.6)


@pytest.fixture(scope="module")
def pair(world):
    return {"first": voter(world, 0.8, seed=1), "second": voter(world, 0.7, seed=2)}


@pytest.fixture(scope="module")
def by_pair(world, pair):
    return fused(world, **pair)


def test_one_voter_gives_what_fusion_gives(world, pair):
    votes = label_votes(pair["first"], world.n_classes)
    alone = fuse(world.images(), votes)
    joint = fuse_voters(world.images(), {"first": votes}).fusion
    assert torch.equal(alone.labels, joint.labels)
    assert torch.equal(alone.confidence, joint.confidence)
    assert torch.equal(alone.head.weights, joint.head.weights)
    assert alone.parameters.independence == joint.parameters.independence


def test_two_voters_are_better_than_the_best(world, pair, by_pair):
    best = max(world.right(labels) for labels in pair.values())
    alone = max(
        world.right(fused(world, one=labels).fusion.labels) for labels in pair.values()
    )
    assert world.right(by_pair.fusion.labels) > best + 0.05
    assert world.right(by_pair.fusion.labels) > alone - LOSS


def test_a_copy_adds_nothing(world, pair, by_pair):
    joint = fused(world, **pair, copy=pair["second"])
    assert joint.voters["copy"].family == joint.voters["second"].family
    assert joint.voters["copy"].family != joint.voters["first"].family
    both = joint.voters["copy"].weight + joint.voters["second"].weight
    assert both == pytest.approx(by_pair.voters["second"].weight, abs=0.05)
    assert world.right(joint.fusion.labels) > world.right(by_pair.fusion.labels) - LOSS
    surer = joint.fusion.confidence.mean() - by_pair.fusion.confidence.mean()
    assert abs(surer.item()) < 0.01


def planted(world, kind):
    n, c = len(world.classes), world.n_classes
    noise = torch.randint(c, (n,), generator=generator(9))
    if kind == "noise":
        return noise
    if kind == "liar":
        return voter(world, 0.0, seed=8)
    if kind == "renames classes":
        return (voter(world, 0.9, seed=8) + 1) % c
    if kind == "seldom":
        return voter(world, 1.0, seed=8, seen=0.05)
    return torch.where(world.classes < c // 2, world.classes, noise)


@pytest.mark.parametrize("kind", ["noise", "liar", "renames classes", "seldom", "half"])
def test_labels_are_no_lower_with_another_voter(world, pair, by_pair, kind):
    joint = fused(world, **pair, planted=planted(world, kind))
    assert world.right(joint.fusion.labels) > world.right(by_pair.fusion.labels) - LOSS
    if kind == "noise":
        assert joint.voters["planted"] is None


def test_a_voter_that_repeats_the_zero_shot_labels_does_not_count_twice(
    world, pair, by_pair
):
    zero_shot = zero_shot_labels(world.images()).long()
    joint = fused(world, **pair, repeats=zero_shot)
    assert joint.voters["repeats"] is None
    assert torch.equal(joint.fusion.labels, by_pair.fusion.labels)
    alone = fused(world, repeats=zero_shot)
    assert alone.voters["repeats"].weight == 1


def test_each_voter_adds_what_the_others_lack(world, pair, by_pair):
    gains = gains_of_voters(by_pair)
    assert 0 < gains["second"] < gains["first"]
    # As many labels become right as the model expects.
    without = world.right(fused(world, second=pair["second"]).fusion.labels)
    gained = world.right(by_pair.fusion.labels) - without
    assert gains["first"] == pytest.approx(gained, abs=0.04)
    copied = fused(world, **pair, copy=pair["second"])
    assert gains_of_voters(copied)["copy"] == pytest.approx(0, abs=0.002)


def test_families_are_voters_with_correlated_residuals():
    shared = torch.tensor(
        [[1, 0.1, 0.8, 0.2], [0.1, 1, 0.1, 0.0], [0.8, 0.1, 1, 0.4], [0.2, 0.0, 0.4, 1]]
    ).double()
    found = families(shared)
    assert found[0] == found[2]
    assert len({found[0], found[1], found[3]}) == 3
    has = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    weights = family_weights(shared, found, has)
    # Two of one family, and two others: mean correlations 0.1 and 0.3 with these.
    assert weights[0, 0].item() == pytest.approx(1 / (2 * (1 + 0.1 + 0.3)))
    assert weights[0, 1].item() == pytest.approx(1 / (1 + 0.1 + 0.0))
    assert weights[0, 3].item() == pytest.approx(1 / (1 + 0.3 + 0.0))
    assert weights[1].tolist() == [0.5, 0, 0.5, 0]
    assert weights[2, 0].item() == pytest.approx(1 / 1.1)
    assert not weights[3].any()


def test_intervals_hold_where_they_are_given():
    inside = []
    for seed in range(8):
        world = World.of(noise=0.35, text_noise=0.4, seed=seed)
        rates = 0.6 + 0.35 * torch.rand(3, generator=generator(seed))
        labels = {
            f"voter {i}": voter(
                world, float(rate), seed=10 * seed + i, seen=(1.0, 0.5, 0.8)[i]
            )
            for i, rate in enumerate(rates)
        }
        votes = {name: label_votes(one, world.n_classes) for name, one in labels.items()}
        found = estimate_voters(fuse_voters(world.images(), votes), votes)
        for name, one in labels.items():
            if found[name].tells:
                share = (one == world.classes)[one != NO_VOTE].double().mean().item()
                inside.append(found[name].low <= share <= found[name].high)
    assert len(inside) >= 12
    assert np.mean(inside) >= 0.9


def test_a_classifier_of_the_image_features_cannot_be_told(world, pair):
    images = world.images()
    start = fuse(images, label_votes(voter(world, 0.6, seed=4, seen=0.2), world.n_classes))
    labels = start.head.logits(images.centred.double()).argmax(dim=1)
    votes = {
        name: label_votes(one, world.n_classes)
        for name, one in (pair | {"classifier": labels}).items()
    }
    found = estimate_voters(fuse_voters(images, votes), votes)
    assert not found["classifier"].tells
    assert found["classifier"].answers_needed > 0


def fused_by_counted(world, votes, **given):
    images = world.images()
    return fuse_counted(
        lambda some, tests: fuse_voters(images, some, tests=tests), votes, **given
    )


def test_a_voter_with_the_errors_of_zero_shot_scores_does_not_outvote_a_better_one():
    """Images then side with it, and nothing but its kind says that they share its errors."""
    world = World.of(noise=1.0, text_noise=0.8)
    repeated = zero_shot_labels(world.images()).long()
    noise = torch.randint(world.n_classes, repeated.shape, generator=generator(5))
    is_changed = torch.rand(len(noise), generator=generator(6)) < 0.25
    labels = {
        "apart": voter(world, 0.75, seed=1),
        "clip": torch.where(is_changed, noise, repeated),
    }
    votes = {name: label_votes(one, world.n_classes) for name, one in labels.items()}
    alone = fused(world, apart=labels["apart"]).fusion
    assert (
        world.right(fused(world, **labels).fusion.labels) < world.right(alone.labels) - 0.3
    )
    joint, estimates = fused_by_counted(world, votes, like_images=["clip"])
    assert joint.uncounted == ["clip"]
    assert torch.equal(joint.fusion.labels, alone.labels)
    assert torch.equal(joint.fusion.head.weights, alone.head.weights)
    assert joint.voters["clip"] is None
    assert not any(one.tells for one in estimates.values())


def test_where_no_voter_knows_anything_none_counts():
    world = World.of()
    noise = {name: label_votes(planted(world, "noise"), 6) for name in ("one", "two")}
    joint, estimates = fused_by_counted(world, noise)
    assert joint.voters == {"one": None, "two": None}
    assert joint.uncounted == ()
    assert not any(estimates[name].tells for name in noise)


def test_voters_that_can_be_told_all_count():
    world = World.of(noise=0.25, text_noise=0.4)
    labels = {"first": voter(world, 0.9, seed=1), "second": voter(world, 0.8, seed=2)}
    votes = {name: label_votes(one, world.n_classes) for name, one in labels.items()}
    joint, estimates = fused_by_counted(world, votes)
    assert all(estimates[name].tells for name in labels)
    assert joint.uncounted == ()
    assert torch.equal(joint.fusion.labels, fused(world, **labels).fusion.labels)


def test_answers_that_were_drawn_decide(world, pair, by_pair):
    rows = torch.randperm(len(world.classes), generator=generator(3))[:120].sort().values
    shares = F.one_hot(world.classes[rows], world.n_classes).double()
    labelled = LabelledRows(
        len(world.classes), rows, shares, torch.ones(120, dtype=torch.bool)
    )
    votes = {name: label_votes(one, world.n_classes) for name, one in pair.items()}
    found = estimate_voters(by_pair, votes, labelled)
    assert set(found) == {"first", "second", ZERO_SHOT}
    for name, labels in pair.items():
        one, right = found[name], (labels == world.classes)
        assert (one.source, one.tells, one.answers_needed) == ("answers", True, 0)
        assert one.value == pytest.approx(right[rows].double().mean().item())
        assert one.low <= right.double().mean().item() <= one.high
