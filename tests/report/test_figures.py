import math

import numpy as np
import pytest

from latteclip.report import comparison

N, C = 41, 7


@pytest.fixture
def arrays():
    """Labels [N] without class 4, predictions before and after [N], margins [N]."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.resize([0, 1, 2, 3, 5, 6], N))
    return labels, rng.integers(0, C, N), rng.integers(0, C, N), rng.random(N)


# Of a kind of captions, as in captions/summary.json.
SUMMARY = {
    **{"captions": 5, "failed": 0, "empty": 1, "cut": 2, "distinct": 3},
    **{"words": {"mean": 2.5}, "tokens": {"mean": 2}, "share_naming_a_class": 0.75},
    "most_repeated": [{"caption": "a red dot", "times": 2}],
}


def run(method, seed, acc1, **more):
    other = None if acc1 is None else acc1 / 2
    return {
        "dataset": "d",
        "method": method,
        "seed": seed,
        "marks": [],
        "acc1": acc1,
        "acc5": other,
        "mean_per_class_recall": other,
        **more,
    }


def test_headline_is_mean_spread_and_differences_in_percent():
    runs = [run("a", 0, 0.5), run("b", 0, 0.6, marks=["ours"]), run("b", 1, 0.8)]
    first, second = comparison.headline(runs, "a", zero_shot=0.45)
    assert (first.method, first.seeds, first.spread, first.over_baseline) == ("a", 1, None, 0)
    assert first.gain == pytest.approx(5)
    assert second.acc1 == pytest.approx(70)
    assert second.spread == pytest.approx(math.sqrt(200))
    assert second.each == pytest.approx([60, 80])
    assert second.gain == pytest.approx(25)
    assert second.over_baseline == pytest.approx(20)
    assert (second.acc5, second.recall) == pytest.approx((35, 35))
    assert second.marks == ["ours"]


def test_headline_without_labels_is_blank():
    (row,) = comparison.headline([run("a", 0, None)], "a", zero_shot=None)
    assert row.acc1 is row.spread is row.gain is row.acc5 is row.recall is None
    assert row.each == []


def test_class_changes_equal_the_loop_and_are_sorted_by_change(arrays):
    labels, before, after, _ = arrays
    changes = comparison.class_changes(labels, before, after, [f"class {c}" for c in range(C)])
    assert [row.change for row in changes] == sorted((r.change for r in changes), reverse=True)
    found = {row.classname: row for row in changes}
    assert len(found) == C - 1  # class 4 has no image
    for c in set(labels.tolist()):
        own = [i for i in range(N) if labels[i] == c]
        row = found[f"class {c}"]
        assert row.images == len(own)
        assert row.before == pytest.approx(100 * sum(before[i] == c for i in own) / len(own))
        assert row.after == pytest.approx(100 * sum(after[i] == c for i in own) / len(own))


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
    pairs = comparison.worst_pairs(labels, before, after, C, 1000)
    assert {(p.true, p.predicted) for p in pairs} == set(shares)
    for p in pairs:
        assert (p.after, p.before) == pytest.approx(shares[p.true, p.predicted])
    assert [p.after for p in pairs] == sorted((p.after for p in pairs), reverse=True)
    assert comparison.worst_pairs(labels, before, after, C, 3) == pairs[:3]


def test_the_classes_of_pairs_come_in_pairs():
    pairs = [
        comparison.Pair(0, 1, 0, 50),
        comparison.Pair(2, 0, 0, 40),
        comparison.Pair(0, 2, 0, 30),
    ]
    assert comparison.classes_of(pairs, 2) == [0, 1]
    assert comparison.classes_of(pairs, 3) == [0, 1, 2]


def test_reliability_equals_the_loop():
    rng = np.random.default_rng(1)
    confidence = np.append(rng.random(N - 2) * 0.79, [0.0, 1.0])
    correct = rng.integers(0, 2, N)
    found = comparison.reliability(confidence, correct, bins=5)
    for b in range(5):
        own = [i for i in range(N) if min(int(confidence[i] * 5), 4) == b]
        assert found.shares[b] == pytest.approx(len(own) / N)
        if own:
            assert found.accuracy[b] == pytest.approx(sum(correct[i] for i in own) / len(own))
        else:
            assert math.isnan(found.accuracy[b])
    order = sorted(range(N), key=lambda i: -confidence[i])
    for percent in (1, 37, 100):
        kept = order[: math.ceil(percent / 100 * N)]
        assert found.kept[percent - 1] == pytest.approx(np.mean([correct[i] for i in kept]))


def test_without_labels_only_the_confidence_is_known():
    found = comparison.reliability(np.array([0.1, 0.9]), None)
    assert found.accuracy is None
    assert found.kept is None
    assert found.shares.sum() == 1


@pytest.mark.parametrize("improved", [True, False])
def test_moved_images_changed_as_they_say(arrays, improved):
    labels, before, after, margins = arrays
    found = comparison.moved(labels, before, after, margins, improved=improved, n=N)
    changed = [
        i
        for i in range(N)
        if (after[i] == labels[i]) == improved and (before[i] == labels[i]) != improved
    ]
    assert sorted(one.index for one in found) == changed
    assert all((one.before, one.after) == (before[one.index], after[one.index]) for one in found)


def test_moved_images_are_of_different_classes_first_and_the_clearest_of_each():
    labels = np.array([0, 0, 0, 1])
    margins = np.array([0.1, 0.3, 0.2, 0.1])
    found = comparison.moved(labels, 1 - labels, labels, margins, improved=True, n=3)
    assert [one.index for one in found] == [1, 3, 2]


def test_caption_statistics_count_what_they_say():
    found = comparison.caption_statistics(SUMMARY, 50.0, None)
    assert (found.captions, found.distinct, found.empty, found.failed) == (5, 3, 1, 0)
    assert (found.cut, found.words, found.tokens) == pytest.approx((40, 2.5, 2))
    assert found.names_class == pytest.approx(75)
    assert (found.names_pseudo_label, found.names_label) == (50, None)
    assert found.frequent == [("a red dot", 2)]
    nothing = {**SUMMARY, "words": {}, "tokens": {}, "most_repeated": []}
    found = comparison.caption_statistics(nothing, None, None)
    assert found.words is found.tokens is None
