from collections import Counter

import numpy as np
import pytest

from latteclip.report import comparison, runs

M, N, C = 3, 53, 7


@pytest.fixture
def found():
    """What M methods say of N images; class 4 is given to none by the main one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, (M, N))
    labels[1][labels[1] == 4] = 3
    labels[:, :9] = labels[1, :9]  # all methods agree
    said = runs.Said(labels[1], (labels[1] + 1) % C, rng.random(N))
    return comparison.Opinions(["zero_shot", "main", "other"], labels, 1, 0, said, M)


def test_answers_methods_and_class_sizes_equal_the_loop(found):
    columns = list(zip(*found.labels.tolist(), strict=True))
    assert found.answers.tolist() == [len(set(column)) for column in columns]
    for name, labels in zip(found.methods, found.labels, strict=True):
        own = comparison.methods(found)[name]
        assert own.classes == len(set(labels.tolist()))
        changed = sum(column[0] != label for column, label in zip(columns, labels, strict=True))
        assert own.changed == pytest.approx(100 * changed / N)
    truth = np.resize(np.arange(C), N)
    sizes = comparison.class_sizes(found, truth, C)
    assert [one.after for one in sizes] == sorted((one.after for one in sizes), reverse=True)
    assert {one.label for one in sizes} == set(range(C))
    for one in sizes:
        each = [labels.count(one.label) for labels in found.labels.tolist()]
        assert (one.each, one.before, one.after) == (each, each[0], each[1])
        assert one.true == truth.tolist().count(one.label)
    assert comparison.class_sizes(found, None, C)[0].true is None


def test_shifts_equal_the_loop(found):
    pairs = Counter(
        (a, b) for a, b in zip(found.before.tolist(), found.after.tolist(), strict=True) if a != b
    )
    shifts = comparison.shifts(found.before, found.after, C, 100)
    assert {(one.before, one.after): one.images for one in shifts} == pairs
    assert [one.images for one in shifts] == sorted(pairs.values(), reverse=True)
    for one in shifts:
        share = 100 * one.images / found.before.tolist().count(one.before)
        assert one.share == pytest.approx(share)
    assert comparison.shifts(found.before, found.after, C, 2) == shifts[:2]
    assert comparison.shifts(found.before, found.before, C, 2) == []


def test_disputed_images_have_most_answers_and_classes_take_turns(found):
    chosen = comparison.disputed(found, N)
    assert set(chosen) == {i for i in range(N) if len(set(found.labels[:, i])) > 1}
    first = chosen[0]
    assert found.answers[first] == found.answers.max()
    of_class = [found.after[i] for i in chosen]
    classes = len(set(of_class))
    assert len(set(of_class[:classes])) == classes
    for label in set(of_class):
        own = [
            (-found.answers[i], -found.said.margins[i]) for i in chosen if found.after[i] == label
        ]
        assert own == sorted(own)
    for i in chosen:
        sides = comparison.sides(found, i)
        assert {name: label for label, names in sides for name in names} == dict(
            zip(found.methods, found.labels[:, i].tolist(), strict=True)
        )
        assert len(sides[0][1]) == max(len(names) for _, names in sides)


def test_classes_take_turns_in_the_order_of_their_images():
    order = np.array([4, 2, 0, 1, 3])
    classes = np.array([0, 1, 0, 2, 0])
    assert comparison.taking_turns(order, classes, 9) == [4, 1, 3, 2, 0]
    assert comparison.taking_turns(order, classes, 2) == [4, 1]
    assert comparison.taking_turns(order[:0], classes, 2) == []


@pytest.mark.parametrize("most", [1, 3, 40])
def test_each_class_has_its_surest_and_its_least_sure_images(found, most):
    ends = comparison.ends_of_classes(found, 10_000, most)
    assert [one.label for one in ends] == [0, 1, 2, 3, 5, 6]
    for one in ends:
        own = [i for i in range(N) if found.after[i] == one.label]
        own.sort(key=lambda i: -found.said.margins[i])
        assert one.images == len(own)
        assert one.surest == own[:most]
        assert one.least == own[most:][::-1][:most]  # none stands on both sides
        assert one.disputed == sum(len(set(found.labels[:, i])) > 1 for i in own)


def test_of_too_many_classes_those_come_that_are_disputed_most(found):
    every = comparison.ends_of_classes(found, 10_000, 1)
    some = comparison.ends_of_classes(found, 6, 3)
    assert [len(one.surest + one.least) for one in some] == [2, 2, 2]
    kept = {one.label for one in some}
    least = min(one.disputed for one in some)
    assert all(one.disputed <= least for one in every if one.label not in kept)
