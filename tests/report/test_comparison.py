import math
import re
from collections import Counter

import numpy as np
import pytest

from latteclip.report import comparison, runs

M = 3
N, C = 41, 7


@pytest.fixture
def arrays():
    """Labels [N] without class 4, predictions before and after [N], margins [N]."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.resize([0, 1, 2, 3, 5, 6], N))
    return labels, rng.integers(0, C, N), rng.integers(0, C, N), rng.random(N)


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
    assert (*(first[key] for key in ("method", "seeds", "spread", "over_baseline")),) == (
        "a",
        1,
        None,
        0,
    )
    assert first["gain"] == pytest.approx(5)
    assert second["acc1"] == pytest.approx(70)
    assert second["spread"] == pytest.approx(math.sqrt(200))
    assert second["each"] == pytest.approx([60, 80])
    assert second["gain"] == pytest.approx(25)
    assert second["over_baseline"] == pytest.approx(20)
    assert (second["acc5"], second["recall"]) == pytest.approx((35, 35))
    assert second["marks"] == ["ours"]


def test_class_changes_equal_the_loop_and_are_sorted_by_change(arrays):
    labels, before, after, _ = arrays
    changes = comparison.class_changes(labels, before, after, [f"class {c}" for c in range(C)])
    assert [row["change"] for row in changes] == sorted(
        (r["change"] for r in changes), reverse=True
    )
    found = {row["classname"]: row for row in changes}
    assert len(found) == C - 1  # class 4 has no image
    for c in set(labels.tolist()):
        own = [i for i in range(N) if labels[i] == c]
        row = found[f"class {c}"]
        assert row["images"] == len(own)
        assert row["before"] == pytest.approx(100 * sum(before[i] == c for i in own) / len(own))
        assert row["after"] == pytest.approx(100 * sum(after[i] == c for i in own) / len(own))


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
    assert {(p["true"], p["predicted"]) for p in pairs} == set(shares)
    for p in pairs:
        assert (p["after"], p["before"]) == pytest.approx(shares[p["true"], p["predicted"]])
    assert [p["after"] for p in pairs] == sorted((p["after"] for p in pairs), reverse=True)
    assert comparison.worst_pairs(labels, before, after, C, 3) == pairs[:3]


def test_the_classes_of_pairs_come_in_pairs():
    pairs = [{"true": i, "predicted": j} for i, j in ((0, 1), (2, 0), (0, 2))]
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
        assert found.surest[percent - 1] == pytest.approx(np.mean([correct[i] for i in kept]))


@pytest.mark.parametrize("improved", [True, False])
def test_changed_images_are_those_between_right_and_wrong(arrays, improved):
    labels, before, after, margins = arrays
    found = comparison.changed_images(labels, before, after, margins, improved=improved, n=N)
    changed = [
        i
        for i in range(N)
        if (after[i] == labels[i]) == improved and (before[i] == labels[i]) != improved
    ]
    assert sorted(found) == changed


# --- methods without labels ---


@pytest.fixture
def found():
    """Predictions of M methods for N images; the main one never predicts class 4."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, (M, N))
    labels[1][labels[1] == 4] = 3
    labels[:, :9] = labels[1, :9]  # all methods agree
    of_main = runs.RunPredictions(labels[1], (labels[1] + 1) % C, rng.random(N))
    return comparison.MethodPredictions(["zero_shot", "main", "other"], labels, 1, 0, of_main, M)


def test_disagreements_methods_and_class_sizes_equal_the_loop(found):
    columns = list(zip(*found.labels.tolist(), strict=True))
    assert found.n_classes.tolist() == [len(set(column)) for column in columns]
    for name, labels in zip(found.methods, found.labels, strict=True):
        own = comparison.methods_used(found)[name]
        assert own["classes"] == len(set(labels.tolist()))
        changed = sum(column[0] != label for column, label in zip(columns, labels, strict=True))
        assert own["changed"] == pytest.approx(100 * changed / N)
    truth = np.resize(np.arange(C), N)
    sizes = comparison.class_sizes(found, truth, C)
    assert [one["after"] for one in sizes] == sorted((one["after"] for one in sizes), reverse=True)
    assert {one["label"] for one in sizes} == set(range(C))
    for one in sizes:
        each = [labels.count(one["label"]) for labels in found.labels.tolist()]
        assert (one["each"], one["before"], one["after"]) == (each, each[0], each[1])
        assert one["true"] == truth.tolist().count(one["label"])
    assert comparison.class_sizes(found, None, C)[0]["true"] is None


def test_shifts_equal_the_loop(found):
    pairs = Counter(
        (a, b) for a, b in zip(found.before.tolist(), found.after.tolist(), strict=True) if a != b
    )
    shifts = comparison.shifts(found.before, found.after, C, 100)
    assert {(one["before"], one["after"]): one["images"] for one in shifts} == pairs
    assert [one["images"] for one in shifts] == sorted(pairs.values(), reverse=True)
    for one in shifts:
        share = 100 * one["images"] / found.before.tolist().count(one["before"])
        assert one["share"] == pytest.approx(share)
    assert comparison.shifts(found.before, found.after, C, 2) == shifts[:2]
    assert comparison.shifts(found.before, found.before, C, 2) == []


def test_disputed_images_have_most_answers_and_classes_take_turns(found):
    chosen = comparison.disputed(found, N)
    assert set(chosen) == {i for i in range(N) if len(set(found.labels[:, i])) > 1}
    first = chosen[0]
    assert found.n_classes[first] == found.n_classes.max()
    of_class = [found.after[i] for i in chosen]
    classes = len(set(of_class))
    assert len(set(of_class[:classes])) == classes
    for label in set(of_class):
        own = [
            (-found.n_classes[i], -found.of_main.margins[i])
            for i in chosen
            if found.after[i] == label
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
    assert comparison.class_balanced_top(order, classes, 9) == [4, 1, 3, 2, 0]
    assert comparison.class_balanced_top(order, classes, 2) == [4, 1]
    assert comparison.class_balanced_top(order[:0], classes, 2) == []


@pytest.mark.parametrize("most", [1, 3, 40])
def test_each_class_has_its_surest_and_its_least_sure_images(found, most):
    ends = comparison.ends_of_classes(found, 10_000, most)
    assert [one["label"] for one in ends] == [0, 1, 2, 3, 5, 6]
    for one in ends:
        own = [i for i in range(N) if found.after[i] == one["label"]]
        own.sort(key=lambda i: -found.of_main.margins[i])
        assert one["images"] == len(own)
        assert one["surest"] == own[:most]
        assert one["least"] == own[most:][::-1][:most]  # none stands on both sides
        assert one["disputed"] == sum(len(set(found.labels[:, i])) > 1 for i in own)


def test_of_too_many_classes_those_come_that_are_disputed_most(found):
    every = comparison.ends_of_classes(found, 10_000, 1)
    some = comparison.ends_of_classes(found, 6, 3)
    assert [len(one["surest"] + one["least"]) for one in some] == [2, 2, 2]
    kept = {one["label"] for one in some}
    least = min(one["disputed"] for one in some)
    assert all(one["disputed"] <= least for one in every if one["label"] not in kept)


def test_a_chart_takes_its_colours_from_the_page_and_is_the_same_each_time():
    x = np.arange(4.0)
    lines = [comparison.Line("a", x, [x, 2 * x], 0), comparison.Line("b", x, [3 - x], 3)]
    drawing, again = (comparison.line_chart("Loss", lines, x_label="epoch") for _ in range(2))
    assert drawing["svg"] == again["svg"]
    assert "var(--series-1)" in drawing["svg"]
    assert "var(--series-4)" in drawing["svg"]
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawing["svg"])) == set()
    assert "a from 0 to 4.5; b from 3 to 0" in drawing["svg"]
    assert "<style" not in drawing["svg"]  # it would be one of the whole page
