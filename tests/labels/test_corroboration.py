import itertools

import pytest
import torch
from support.witnesses import ALL, World, generator

from latteclip.labels import corroboration
from latteclip.labels.corroboration import corroborate

N, C, D = 13, 4, 6


def tables(world, votes):
    """Features, zero-shot probabilities and votes, as `corroborate` takes them."""
    images = world.images()
    return images.centred.double(), images.zero_shot(ALL).exp(), votes


@pytest.fixture
def few():
    world = World.of(N, C, D)
    return tables(world, world.votes().table)


def statistics_in_loops(features, zero_shot, votes):
    mean = votes.mean(dim=0)
    alike = sum(
        ((features[i] @ features[j]) * ((votes[i] - mean) @ (votes[j] - mean))).item()
        for i, j in itertools.permutations(range(len(votes)), 2)
    )
    return alike, sum((zero_shot[i] @ (votes[i] - mean)).item() for i in range(len(votes)))


def test_it_is_the_permutation_test_of_its_definition(few, monkeypatch):
    monkeypatch.setattr(corroboration, "DEALS", 49)
    features, zero_shot, votes = few
    found = corroborate(*few)
    draw = generator(corroboration.SEED)
    deals = [torch.randperm(N, generator=draw) for _ in range(49)]
    own = torch.tensor(statistics_in_loops(features, zero_shot, votes))
    dealt = torch.tensor([statistics_in_loops(features, zero_shot, votes[d]) for d in deals])
    standard = (own - dealt.mean(dim=0)) / dealt.std(dim=0)
    others = ((dealt - dealt.mean(dim=0)) / dealt.std(dim=0)).sum(dim=1)
    assert found.images == pytest.approx(standard[0].item(), rel=1e-4)
    assert found.zero_shot == pytest.approx(standard[1].item(), rel=1e-4)
    assert found.p_value == pytest.approx((1 + (others >= standard.sum()).sum().item()) / 50)


def test_votes_that_have_to_do_with_the_images_are_found():
    world = World.of(300, C, D)
    found = corroborate(*tables(world, world.votes().table))
    assert found.found
    assert min(found.images, found.zero_shot) > 3


def test_votes_dealt_out_at_random_are_seldom_found():
    world = World.of(300, C, D)
    votes = world.votes().table
    values = [
        corroborate(*tables(world, votes[torch.randperm(300, generator=generator(seed))])).p_value
        for seed in range(20)
    ]
    assert min(values) > 0.001
    assert 0.2 < sum(values) / 20 < 0.8  # of uniform ones 0.5, give or take 0.065


@pytest.mark.parametrize("n", [0, 1, 2, N])
def test_votes_that_are_all_alike_are_never_found(n):
    world = World.of(N, C, D)
    features, zero_shot, _ = tables(world, None)
    votes = torch.tensor([0.1, 0.2, 0.3, 0.4]).double().repeat(n, 1)
    found = corroborate(features[:n], zero_shot[:n], votes)
    assert (found.p_value, found.images, found.zero_shot) == (1, 0, 0)
    assert not found.found


def test_of_two_images_nothing_can_be_learned():
    world = World.of(2, 2, D)
    found = corroborate(*tables(world, torch.eye(2).double()))
    assert found.p_value > 0.3


def test_of_many_images_some_are_looked_at(few, monkeypatch):
    features, zero_shot, votes = few
    for name in ("MOST", "FEWEST"):
        monkeypatch.setattr(corroboration, name, 5)
    some = corroborate(features[::3], zero_shot[::3], votes[::3])  # 13 / 5, rounded up
    assert corroborate(features, zero_shot, votes) == some
