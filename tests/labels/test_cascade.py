"""Which images are asked about next, by the doubt about their labels and by answers so far."""

import torch
from support.worlds import generator

from latteclip.labels.cascade import FEWEST, in_turn, likely_changes


def uniform(n, seed):
    return torch.rand(n, generator=generator(seed)).double()


def test_answers_tell_how_much_too_small_the_doubts_are():
    """Labels are wrong three times as often as they say."""
    doubt = 0.3 * uniform(4000, 1)
    asked = torch.arange(4000) < 1000
    changed = uniform(4000, 2) < 3 * doubt
    found = likely_changes(doubt, doubt[asked], changed[asked])
    expected = found[~asked].sum() / changed[~asked].sum()
    assert 0.9 < float(expected) < 1.1
    order = doubt.argsort()
    assert (found[order].diff() >= 0).all()


def test_doubts_that_say_nothing_leave_all_images_alike():
    doubt = uniform(2000, 1)
    changed = uniform(2000, 3) < 0.4
    found = likely_changes(doubt, doubt.flip(0), changed)
    assert float(found.quantile(0.95) - found.quantile(0.05)) < 0.15
    assert abs(float(found.mean()) - 0.4) < 0.04


def test_few_answers_change_no_doubt_and_a_person_leaves_none():
    doubt = torch.tensor([0.0, 0.2, 0.7], dtype=torch.float64)
    few = torch.full((FEWEST - 1,), 0.5, dtype=torch.float64)
    assert likely_changes(doubt, few, few > 0).tolist() == doubt.tolist()
    many = torch.full((FEWEST,), 0.5, dtype=torch.float64)
    assert likely_changes(doubt, many, many > 0)[0] == 0


def test_all_answers_alike_are_no_certainty():
    doubt = torch.full((50,), 0.5, dtype=torch.float64)
    found = likely_changes(doubt, doubt, torch.zeros(50, dtype=torch.bool))
    assert 0 < float(found.max()) < 0.2


def test_large_gains_come_first_and_in_the_first_round_half_come_from_all():
    gains = torch.cat([torch.full((100,), 0.9), torch.full((900,), 1e-4)]).double()
    gains[500] = 0.0
    chosen = in_turn(gains, is_first=False)[:100]
    assert (chosen < 100).sum() > 70
    first = in_turn(gains, is_first=True)
    assert 30 < int((first[:100] < 100).sum()) < 75
    assert sorted(first.tolist()) == [row for row in range(1000) if row != 500]
    assert in_turn(gains, is_first=True, seed=1).tolist() != first.tolist()
