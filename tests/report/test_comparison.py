import numpy as np
import pytest

from latteclip.report import comparison

M = 3
N, C = 41, 7


@pytest.fixture
def arrays():
    """Labels [N] without class 4, predictions before and after [N], margins [N]."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.resize([0, 1, 2, 3, 5, 6], N))
    return labels, rng.integers(0, C, N), rng.integers(0, C, N), rng.random(N)


def test_confusion_equals_the_loop(arrays):
    labels, _, after, _ = arrays
    classes = [5, 0, 4, 2]
    matrix = comparison.confusion(labels, after, classes)
    for row, i in enumerate(classes):
        own = [n for n in range(N) if labels[n] == i]
        for column, j in enumerate(classes):
            hits = sum(after[n] == j for n in own)
            assert matrix[row, column] == pytest.approx(hits / len(own) if own else 0)


def test_worst_pairs_equal_the_loop(arrays):
    labels, before, after, _ = arrays
    shares = {}
    for i in set(labels.tolist()):
        own = [n for n in range(N) if labels[n] == i]
        for j in set(range(C)) - {i}:
            hits = sum(after[n] == j for n in own)
            old = sum(before[n] == j for n in own) / len(own)
            if hits:
                shares[i, j] = (100 * hits / len(own), 100 * old)
    pairs = comparison.worst_pairs(labels, before, after, 1000)
    assert {(p["first"], p["second"]) for p in pairs} == set(shares)
    for p in pairs:
        wanted = pytest.approx(shares[p["first"], p["second"]])
        assert (p["share"], p["share_before"]) == wanted
    assert [p["share"] for p in pairs] == sorted((p["share"] for p in pairs), reverse=True)
    assert comparison.worst_pairs(labels, before, after, 3) == pairs[:3]


def test_the_classes_of_pairs_come_in_pairs():
    pairs = [{"first": i, "second": j} for i, j in ((0, 1), (2, 0), (0, 2))]
    assert comparison.classes_of(pairs, 2) == [0, 1]
    assert comparison.classes_of(pairs, 3) == [0, 1, 2]


@pytest.mark.parametrize("improved", [True, False])
def test_changed_images_are_those_between_right_and_wrong(arrays, improved):
    labels, before, after, margins = arrays
    found = comparison.changed_images(
        labels, before, after, margins, improved=improved, n=N
    )
    changed = [
        i
        for i in range(N)
        if (after[i] == labels[i]) == improved and (before[i] == labels[i]) != improved
    ]
    assert sorted(found) == changed


def test_classes_take_turns_in_the_order_of_their_images():
    order = np.array([4, 2, 0, 1, 3])
    classes = np.array([0, 1, 0, 2, 0])
    assert comparison.class_balanced_top(order, classes, 9) == [4, 1, 3, 2, 0]
    assert comparison.class_balanced_top(order, classes, 2) == [4, 1]
    assert comparison.class_balanced_top(order[:0], classes, 2) == []


@pytest.fixture
def found():
    """Predictions of M methods for N images; the main one never predicts class 4."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, (M, N))
    labels[1][labels[1] == 4] = 3
    labels[:, :9] = labels[1, :9]  # all methods agree
    names, second = ["zero_shot", "main", "other"], (labels[1] + 1) % C
    return comparison.MethodPredictions(names, labels, "main", second, rng.random(N), M)


def test_disputed_images_have_most_answers_and_classes_take_turns(found):
    answers = [len(set(column)) for column in found.labels.T.tolist()]
    chosen = comparison.disputed(found, N)
    assert set(chosen) == {i for i in range(N) if answers[i] > 1}
    assert answers[chosen[0]] == max(answers)
    of_class = [found.after[i] for i in chosen]
    classes = len(set(of_class))
    assert len(set(of_class[:classes])) == classes
    for label in set(of_class):
        own = [(-answers[i], -found.margins[i]) for i in chosen if found.after[i] == label]
        assert own == sorted(own)
    for i in chosen:
        sides = comparison.sides(found, i)
        assert {name: label for label, names in sides for name in names} == dict(
            zip(found.methods, found.labels[:, i].tolist(), strict=True)
        )
        assert len(sides[0][1]) == max(len(names) for _, names in sides)


@pytest.mark.parametrize("most", [1, 3, 40])
def test_each_class_has_its_surest_and_its_least_sure_images(found, most):
    ends = comparison.ends_of_classes(found, 10_000, most)
    assert [one["label"] for one in ends] == [0, 1, 2, 3, 5, 6]
    for one in ends:
        own = [i for i in range(N) if found.after[i] == one["label"]]
        own.sort(key=lambda i: -found.margins[i])
        assert one["images"] == len(own)
        assert one["surest"] == own[:most]
        assert one["least"] == own[most:][::-1][:most]  # none stands on both sides
        assert one["disputed"] == sum(len(set(found.labels[:, i])) > 1 for i in own)


def test_of_too_many_classes_those_come_that_are_disputed_most(found):
    every = comparison.ends_of_classes(found, 10_000, 1)
    some = comparison.ends_of_classes(found, 6, 3)
    assert [len(one["surest"] + one["least"]) for one in some] == [2, 2, 2]
    chosen = {one["label"] for one in some}
    least = min(one["disputed"] for one in some)
    assert all(one["disputed"] <= least for one in every if one["label"] not in chosen)
