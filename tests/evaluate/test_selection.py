"""The choice among classifiers by votes and by a person's answers."""

from statistics import NormalDist

import numpy as np
import pytest

from latteclip.core.errors import UserError
from latteclip.core.holdout import FEWEST
from latteclip.evaluate.results import Accuracy, Audit, Comparison
from latteclip.evaluate.select_model import Candidate, Judge, choose
from latteclip.evaluate.train_predictions import MISSING

N = 150


def candidate(method, seed=0, marks=()):
    return Candidate(method, seed, method, marks)


def candidates(*methods):
    return [candidate(method) for method in methods]


def judge(*right, n=N):
    """A judge whose captions are for class 0, which candidates predict for these images.

    Elsewhere each predicts a class of its own.
    """
    rows = [
        [0 if image in images else 1 + number for image in range(n)]
        for number, images in enumerate(right)
    ]
    return Judge(np.eye(20)[np.zeros(n, int)], np.array(rows))


def chosen(named, judged, audit=None):
    found = named[choose(named, judged, audit).index]
    return found.method


# --- counts --------------------------------------------------------------------------------------


def test_a_comparison_counts_what_plain_loops_count():
    rng = np.random.default_rng(0)
    for n, c in ((1, 2), (7, 3), (40, 5)):
        shares, predictions = rng.integers(5, size=(n, c)) / 4, rng.integers(-1, c, size=(2, n))
        found = Judge(shares, predictions).compare(0, 1)
        both = [
            (one, other, share)
            for one, other, share in zip(*predictions.tolist(), shares, strict=True)
            if MISSING not in (one, other)
        ]
        assert found == (
            len(both),
            sum(one != other for one, other, _ in both),
            sum(share[one] > share[other] for one, other, share in both),
            sum(share[one] < share[other] for one, other, share in both),
        )


def test_seeds_are_judged_by_the_images_that_any_of_them_left_out():
    named = [candidate("zero_shot"), *(candidate("flyp", seed) for seed in range(3))]
    predictions = np.full((4, 9), MISSING)
    predictions[0] = 5
    for seed in range(3):
        predictions[1 + seed, 3 * seed : 3 * seed + 3] = seed
    pooled = Judge(np.ones((9, 9)), predictions).pooled(named).predictions
    assert pooled[0].tolist() == [5] * 9
    assert pooled[1:].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 3


# --- by votes ------------------------------------------------------------------------------------


def test_a_clear_winner_is_chosen_whatever_its_kind():
    named = candidates("zero_shot", "image_prototypes", "flyp")
    assert chosen(named, judge(range(90), range(40), range(40))) == "zero_shot"
    assert chosen(named, judge(range(40), range(90), range(40))) == "image_prototypes"
    assert chosen(named, judge(range(40), range(40), range(90))) == "flyp"


@pytest.mark.parametrize("order", [1, -1])
def test_of_equals_the_simplest_is_chosen(order):
    named = candidates("zero_shot", "zero_shot_calibrated", "image_prototypes", "flyp")[::order]
    assert chosen(named, judge(*[range(60)] * 4)) == "zero_shot"
    assert chosen(named, judge(*[range(60), range(60, 120)][::order] * 2)) == "zero_shot"


def test_a_lead_of_a_vote_or_within_half_a_standard_error_is_a_tie():
    named = candidates("image_prototypes", "flyp")
    assert chosen(named, judge(range(60), range(61))) == "image_prototypes"
    assert chosen(named, judge(range(60), range(62))) == "flyp"
    # 40 votes against 36: the standard error is 8.7.
    assert chosen(named, judge(range(36), range(40, 80))) == "image_prototypes"
    assert chosen(named, judge(range(35), range(40, 80))) == "flyp"


@pytest.mark.parametrize("images", [0, FEWEST - 1, FEWEST])
def test_what_fewer_than_100_images_judge_is_taken_only_by_answers(images):
    named = candidates("zero_shot", "flyp")
    judged = judge([], range(N))
    judged.predictions[1, images:] = MISSING
    assert chosen(named, judged) == ("flyp" if images == FEWEST else "zero_shot")
    assert chosen(named, judged, audit(named, {"zero_shot": 0.4, "flyp": 0.6})) == "flyp"


def test_the_best_trained_method_is_chosen_and_of_it_the_seed_that_leads_most():
    named = [candidate("zero_shot"), *(candidate("flyp", seed) for seed in range(3))]
    named += [candidate("latteclip", seed) for seed in range(3)]
    judged = judge(range(0), *[range(0)] * 6)
    for seed, (flyp, latteclip) in enumerate([(50, 30), (0, 40), (0, 30)]):
        fold = slice(50 * seed, 50 * seed + 50)
        for row, agree in ((1 + seed, flyp), (4 + seed, latteclip)):
            judged.predictions[row] = MISSING
            judged.predictions[row, fold] = np.where(np.arange(50) < agree, 0, 9)
    found = choose(named, judged, None)
    assert named[found.index] == candidate("latteclip", 1)  # 100 votes, flyp 50


def test_what_collapsed_or_saw_labels_is_never_chosen():
    named = [
        candidate("zero_shot"),
        candidate("flyp_supervised", marks=("supervised",)),
        candidate("flyp", marks=("collapsed",)),
        candidate("latteclip", marks=("ours", "diverged")),
        candidate("image_prototypes"),
    ]
    judged = judge(range(20), range(N), range(N), range(N), range(40))
    best = audit(named, {one.method: 0.1 + 0.2 * (one.method[:4] == "flyp") for one in named})
    for answers in (None, best):
        assert chosen(named, judged, answers) == "image_prototypes"
    assert chosen(named, "nobody was asked", best) == "zero_shot"
    with pytest.raises(UserError):
        choose(named[1:2], judge(range(40)), None)


@pytest.mark.parametrize(
    ("methods", "wanted"),
    [
        (("flyp", "zero_shot", "image_prototypes", "zero_shot_calibrated"), 3),
        (("flyp", "image_prototypes", "zero_shot"), 2),
        (("flyp", "image_prototypes"), 1),
        (("flyp", "latteclip"), 0),
    ],
)
def test_without_a_judge_the_safest_is_chosen(methods, wanted):
    found = choose(candidates(*methods), "nobody was asked", None)
    assert (found.index, found.by) == (wanted, "default")


# --- by answers ----------------------------------------------------------------------------------


def audit(named, accuracies, decided=True):
    """An audit with these accuracies, in which every difference is decided or none is."""
    runs = [Accuracy(one.method, one.seed, accuracies[one.method], 0.0, 1.0) for one in named]
    comparisons = [
        Comparison(*one.run, *other.run, value, value - 0.1, value + 0.1, decided, None)
        for i, one in enumerate(runs)
        for other in runs[:i]
        for value in [one.value - other.value]
    ]
    return Audit("set", "test", 500, 100, 0, 0, "plan", "A verdict.", runs, comparisons)


def test_answers_that_decide_win_over_votes():
    named = candidates("zero_shot", "image_prototypes", "flyp")
    judged = judge(range(20), range(40), range(90))
    accuracies = {"zero_shot": 0.5, "image_prototypes": 0.62, "flyp": 0.33}
    found = choose(named, judged, audit(named, accuracies))
    assert (named[found.index].method, found.by) == ("image_prototypes", "answers")
    found = choose(named, judged, audit(named, accuracies, decided=False))
    assert (named[found.index].method, found.by) == ("flyp", "votes")
    # Where answers and votes agree, votes have chosen.
    found = choose(named, judged, audit(named, {**accuracies, "flyp": 0.7}))
    assert (named[found.index].method, found.by) == ("flyp", "votes")


def test_answers_choose_where_no_vote_does():
    named = candidates("zero_shot", "zero_shot_calibrated", "flyp")
    accuracies = {"zero_shot": 0.2, "zero_shot_calibrated": 0.3, "flyp": 0.4}
    assert chosen(named, "no captions", audit(named, accuracies)) == "flyp"


def test_one_model_alone_needs_no_comparison():
    named = [candidate("zero_shot"), candidate("flyp_supervised", marks=("supervised",))]
    found = choose(named, judge(range(40), range(90)), None)
    assert found.index == 0


# --- what it costs -------------------------------------------------------------------------------


class World:
    """Images with votes, and classifiers of known accuracies that share some of their mistakes."""

    def __init__(self, rng, n, accuracies, right_votes, n_classes=10, alike=0.7):
        labels = rng.integers(n_classes, size=n)

        def mistaken(other):
            return (labels + np.where(other, 1, rng.integers(1, n_classes, size=n))) % n_classes

        shared = rng.random(n) < 0.5  # images that all classifiers mistake for the same class
        hard = rng.normal(size=n)
        rows = []
        for accuracy in accuracies:
            score = np.sqrt(alike) * hard + np.sqrt(1 - alike) * rng.normal(size=n)
            is_right = score < NormalDist().inv_cdf(accuracy)
            rows.append(np.where(is_right, labels, mistaken(shared)))
        votes = np.where(rng.random(n) < right_votes, labels, mistaken(np.zeros(n, bool)))
        self.judge = Judge(np.eye(n_classes)[votes], np.array(rows))


@pytest.mark.parametrize(("n", "right_votes"), [(100, 0.6), (450, 0.3)])
def test_the_choice_costs_little_over_many_draws(n, right_votes):
    """Undertrained, good and overtrained candidates beside prototypes: points of accuracy lost."""
    rng = np.random.default_rng(0)
    named = candidates("image_prototypes", "flyp")
    for gain in (-0.4, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1):
        accuracies = (0.6, 0.6 + gain)
        regrets = [
            100 * (max(accuracies) - accuracies[choose(named, world.judge, None).index])
            for world in (World(rng, n, accuracies, right_votes) for _ in range(60))
        ]
        assert np.mean(regrets) <= 3, gain
