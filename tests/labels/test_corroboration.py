import itertools

import pytest
import torch
from support.witnesses import TableVotes, World, generator

from latteclip.labels import corroboration
from latteclip.labels.corroboration import corroborate
from latteclip.labels.witnesses import ScoreVotes

N, C, D = 13, 4, 6


def corroborated(world, table):
    """What is found of a table [n, C] of votes of the world's first n images."""
    votes = TableVotes(table.double(), torch.ones(len(table), dtype=torch.bool))
    return corroborate(world.images(), votes, torch.arange(len(table)))


def statistics_in_loops(features, zero_shot, votes):
    mean = votes.mean(dim=0)
    alike = sum(
        ((features[i] @ features[j]) * ((votes[i] - mean) @ (votes[j] - mean))).item()
        for i, j in itertools.permutations(range(len(votes)), 2)
    )
    return alike, sum((zero_shot[i] @ (votes[i] - mean)).item() for i in range(len(votes)))


def test_it_is_the_permutation_test_of_its_definition(monkeypatch):
    monkeypatch.setattr(corroboration, "DEALS", 49)
    world = World.of(N, C, D)
    votes = world.votes().table
    features, zero_shot = world.images().centred.double(), world.calibrated().softmax(dim=1)
    found = corroborated(world, votes)
    draw = generator(corroboration.SEED)
    deals = [torch.randperm(N, generator=draw) for _ in range(49)]
    own = torch.tensor(statistics_in_loops(features, zero_shot, votes))
    dealt = torch.tensor([statistics_in_loops(features, zero_shot, votes[d]) for d in deals])
    standard = (own - dealt.mean(dim=0)) / dealt.std(dim=0)
    others = ((dealt - dealt.mean(dim=0)) / dealt.std(dim=0)).sum(dim=1)
    assert found.images == pytest.approx(standard[0].item(), rel=1e-4)
    assert found.zero_shot == pytest.approx(standard[1].item(), rel=1e-4)
    assert found.p_value == pytest.approx((1 + (others >= standard.sum()).sum().item()) / 50)


def test_votes_dealt_out_at_random_are_seldom_found():
    world = World.of(300, C, D)
    votes = world.votes().table
    values = [
        corroborated(world, votes[torch.randperm(300, generator=generator(seed))]).p_value
        for seed in range(20)
    ]
    assert min(values) > 0.001
    assert 0.2 < sum(values) / 20 < 0.8  # of uniform ones 0.5, give or take 0.065


@pytest.mark.parametrize("n", [0, 2, N])
def test_votes_that_are_all_alike_are_never_found(n):
    world = World.of(N, C, D)
    found = corroborated(world, torch.tensor([0.1, 0.2, 0.3, 0.4]).repeat(n, 1))
    assert (found.p_value, found.images, found.zero_shot) == (1, 0, 0)
    assert not found.found


def test_of_many_images_some_are_looked_at(monkeypatch):
    world = World.of(N, C, D)
    images, votes = world.images(), world.votes()
    some = corroborate(images, votes, torch.arange(0, N, 3))
    assert corroborate(images, votes, torch.arange(N)) != some
    for name in ("MOST", "FEWEST"):
        monkeypatch.setattr(corroboration, name, 5)  # 13 / 5, rounded up, is 3
    assert corroborate(images, votes, torch.arange(N)) == some


def options_by_zero_shot(world, k):
    return (world.features @ world.texts.T).topk(k).indices


@pytest.mark.parametrize("seed", range(3))
def test_options_that_zero_shot_scores_chose_corroborate_no_answer(seed):
    world = World.of(300, 20, seed=seed)
    options, draw = options_by_zero_shot(world, 5), generator(10 + seed)
    answers = {
        "none": torch.zeros(300, 5),
        "one for each class": (8 * torch.randn(20, generator=draw))[options],
        "one drawn": 3 * torch.randn(300, 5, generator=draw),
    }
    for answer in answers.values():
        votes = ScoreVotes.of(options, answer, 20)
        assert not corroborate(world.images(), votes, torch.arange(300)).found
    right = 6.0 * (options == world.classes[:, None]) + answers["one drawn"]
    assert corroborate(world.images(), ScoreVotes.of(options, right, 20), torch.arange(300)).found
