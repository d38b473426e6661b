import itertools
import math

import numpy as np
import pytest

from latteclip.captions import letters
from latteclip.captions.scores import log_normalised, summed

OPTIONS = ["banded", "dotted", "lined", "woven"]


def test_an_order_is_a_permutation_that_depends_on_image_and_turn_alone():
    orders = [letters.order_of(f"{n}.png", turn, OPTIONS) for n in range(200) for turn in range(2)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert {tuple(order) for order in orders} == set(itertools.permutations(range(4)))
    assert letters.order_of("7.png", 1, OPTIONS) == orders[15]


def test_every_option_comes_to_every_place_about_equally_often():
    places = np.zeros((4, 4))
    for number in range(2000):
        for place, option in enumerate(letters.order_of(f"{number}.png", 0, OPTIONS)):
            places[place, option] += 1
    assert np.abs(places / 2000 - 0.25).max() < 0.05


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), (" B", "B"), ("  B", None), ("a", None), ("A.", None), ("", None), ("D", None)],
)
def test_a_letter_is_one_with_or_without_a_space(text, letter):
    assert letters.letter_of(text, ("A", "B", "C")) == letter


def test_orders_are_averaged_option_by_option():
    rng = np.random.default_rng(0)
    orders = [[2, 0, 1], [1, 2, 0], [0, 1, 2]]
    values = rng.normal(-9, 2, (3, 4))
    found = letters.over_orders(values.tolist(), orders)
    expected = np.zeros(4)
    for row, order in zip(values, orders, strict=True):
        normalised = row - np.log(np.exp(row).sum())
        for place in range(3):
            expected[order[place]] += normalised[place] / 3
        expected[3] += normalised[3] / 3
    expected -= np.log(np.exp(expected).sum())
    assert found == pytest.approx(expected)


def test_an_impossible_option_leaves_the_others_and_impossible_letters_leave_nothing():
    gap = -math.inf
    one = [gap, -1.0, -1.0]
    assert letters.over_orders([one], [[0, 1]]) == pytest.approx([gap, *[-math.log(2)] * 2])
    assert letters.over_orders([one, one], [[0, 1], [1, 0]]) == pytest.approx([gap, gap, 0.0])
    assert letters.over_orders([one, [gap] * 3], [[0, 1], [1, 0]]) is None
    only = [gap, -1.0, gap]
    assert letters.over_orders([only, only], [[0, 1], [1, 0]]) is None


def test_sums_of_probabilities_do_not_overflow():
    assert summed([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2))
    assert summed([]) == summed([-math.inf]) == -math.inf
    assert log_normalised([-1e4, -1e4]) == pytest.approx([-math.log(2)] * 2)
    assert log_normalised([-math.inf]) is None
