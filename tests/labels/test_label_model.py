"""The label model on worlds of which everything is known: what it promises, and what it cannot."""

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from latteclip.labels import label_model, votes
from latteclip.labels.label_model import Answers, LabelModel
from latteclip.labels.labellers import by_answers

ROOT = Path(__file__).parents[2]
C = 6


class Planted:
    """Images around the directions of their classes, texts near these, and a labeller."""

    def __init__(
        self, seed=0, counts=(60,) * C, *, noise=0.15, right=0.85, width=32, texts=0.25
    ):
        self.rng = np.random.default_rng(seed)
        c = len(counts)
        self.centres = unit(self.rng.normal(size=(c, width)))
        self.truth = self.rng.permutation(np.repeat(np.arange(c), counts))
        self.noise = noise
        self.x = self.images(self.truth)
        self.texts = unit(self.centres + texts * self.rng.normal(size=self.centres.shape))
        self.votes = self.voter(right)

    def images(self, truth):
        noise = self.noise * self.rng.normal(size=(len(truth), self.centres.shape[1]))
        return unit(self.centres[truth] + noise).astype(np.float32)

    def voter(self, right):
        """Votes of which a share is right, and the others are random."""
        c = len(self.centres)
        wrong = (
            (self.truth + self.rng.integers(1, c, len(self.truth))) % c
            if c > 1
            else self.truth
        )
        return np.where(self.rng.random(len(self.truth)) < right, self.truth, wrong)

    def answers(self, rows, drawn=False):
        shares = np.eye(len(self.centres))[self.truth[rows]]
        return Answers(np.asarray(rows), shares, np.full(len(rows), drawn))

    def right(self, labels, rows=slice(None)):
        return float(np.mean((np.asarray(labels) == self.truth)[rows]))

    def fit(self, given=None, texts=None, answers=None, **options):
        """The model of the images, by default of the labeller alone."""
        given = {"a": self.votes} if given is None else given
        n_classes = len(self.centres)
        return LabelModel().fit(
            self.x, given, texts, answers, n_classes=n_classes, **options
        )


def unit(table):
    return table / np.linalg.norm(table, axis=1, keepdims=True)


# --- never below its input, and above it where images know more ----------------------------------

ALIKE = (60,) * C
COUNTS = {
    "all classes alike": ALIKE,
    "frequencies 1:20": (120, 66, 36, 20, 11, 6),
    "frequencies 1:100": (200, 80, 32, 13, 5, 2),
    "one class has 70 %": (210, 18, 18, 18, 18, 18),
    "two images a class": (2,) * 40,
    "three images a class": (3,) * 40,
    "five images a class": (5,) * 40,
    "fewer images than classes": (1,) * 12 + (0,) * 12,
    "images of one class": (80, 0, 0, 0, 0, 0),
    "one image": (1,),
}


def beside(planted):
    """What is given to the model: votes by name, and whether there are texts.

    Of several labellers nobody can know which is right where images tell nothing. Where texts and
    votes differ about rare classes, a labeller whose errors are spread over all classes wins there.
    A few images of a class cannot refute the votes of nobody.
    """
    a, n = planted.votes, len(planted.truth)
    junk = planted.rng.integers(len(planted.centres), size=n)
    zero_shot = (planted.x @ planted.texts.T).argmax(axis=1)
    yield {"a": a}, False
    yield {"a": a, "b": a, "c": a}, False
    yield {"shuffled": planted.rng.permutation(a)}, False
    if max(np.bincount(planted.truth)) == n or n < len(planted.centres):
        return
    yield {"a": a, "constant": np.zeros(n, int)}, False
    if n / len(planted.centres) > 5:
        yield {"nobody": junk}, True
    if max(np.bincount(planted.truth)) > 0.3 * n:
        return
    yield {"a": a}, True
    yield {"a": a, "junk": junk}, False
    yield {"a": a, "copy": zero_shot}, True


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_labels_are_not_below_the_best_of_votes_and_zero_shot(counts):
    drawings = []
    for seed in range(3):
        planted = Planted(seed, counts)
        drawings.append([])
        for given, with_texts in beside(planted):
            model = planted.fit(given, planted.texts if with_texts else None)
            best = max(planted.right(one) for one in given.values())
            if with_texts:
                zero_shot = (planted.x @ planted.texts.T).argmax(axis=1)
                best = max(best, planted.right(zero_shot))
            drawings[-1].append(best - planted.right(model.labels_))
    below = np.mean(drawings, axis=0)
    assert below.max() <= max(0.005, 1.5 / len(planted.truth)), below.round(3)


def weak_texts(seed, counts):
    """A labeller that is right for 60 %, beside class texts that are right for 10 to 35 %."""
    planted = Planted(seed, counts, noise=0.3, right=0.6, texts=0.6)
    return planted, (planted.x @ planted.texts.T).argmax(axis=1)


def test_a_labeller_of_few_images_is_followed_beside_weak_texts():
    below = []
    for seed in range(4):
        planted, _ = weak_texts(seed, (3,) * 20)
        model = planted.fit(texts=planted.texts)
        below.append(planted.right(planted.votes) - planted.right(model.labels_))
    assert np.mean(below) < 0.1, np.round(below, 2)


@pytest.mark.parametrize("random", [0.0, 0.1])
def test_a_copy_of_weak_texts_does_not_teach_images(random):
    for seed in range(2):
        planted, zero_shot = weak_texts(seed, (40,) * 10)
        is_random = planted.rng.random(len(zero_shot)) < random
        zero_shot[is_random] = planted.rng.integers(10, size=is_random.sum())
        model = planted.fit({"a": planted.votes, "copy": zero_shot}, planted.texts)
        assert planted.right(model.labels_) > planted.right(planted.votes) + 0.2


def test_labellers_beside_meaningless_texts_all_count():
    for seed in (0, 3, 4):
        planted = Planted(seed, (40,) * 20, noise=0.3, right=0.95)
        texts = unit(planted.rng.normal(size=planted.centres.shape))
        sparse = np.where(planted.truth < 14, planted.voter(0.9), -1)
        given = {"a": planted.votes, "sparse": sparse, "c": planted.voter(0.9)}
        model = planted.fit(given, texts)
        assert all(model.labellers_[name].weight > 0 for name in given)


@pytest.mark.parametrize(
    ("n", "wrong", "seed"),
    [(1, 0.35, 0), (1, 0.35, 1), (3, 0.35, 0), (1, 9.0, 2), (2, 9.0, 0), (8, 9.0, 1)],
)
@pytest.mark.parametrize("has_texts", [False, True])
def test_a_labeller_that_sees_the_features_is_contradicted_by_others(
    n, wrong, seed, has_texts
):
    """Images predict it however wrong it is, as they do any classifier of their features."""
    planted = Planted(seed, (30,) * 10, noise=0.3, right=0.7, texts=0.2)
    shift = wrong * planted.rng.normal(size=planted.centres.shape)
    sees = (planted.x @ unit(planted.centres + shift).T).argmax(axis=1)
    given = {"sees": sees, **{str(k): planted.voter(0.7) for k in range(n)}}
    model = planted.fit(given, planted.texts if has_texts else None)
    best = max(map(planted.right, given.values()))
    assert planted.right(model.labels_) > best + 0.05
    assert model.labellers_["sees"].accuracy is None


@pytest.mark.parametrize("right", [0.5, 0.7, 0.9])
def test_images_correct_random_votes(right):
    planted = Planted(counts=(100,) * C, right=right)
    model = planted.fit()
    assert planted.right(model.labels_) > 0.97
    new = planted.rng.integers(C, size=300)
    assert np.mean(model.predict(planted.images(new)) == new) > 0.95
    place = np.minimum((model.confidence_ * 10).astype(int), 9)
    gap = np.bincount(place, (model.labels_ == planted.truth) - model.confidence_)
    assert np.abs(gap).sum() / len(place) < 0.1 and model.is_checked_ == (right > 0.85)
    assert np.allclose(model.predict_proba(planted.x).sum(axis=1), 1)


@pytest.mark.parametrize("at_random", [True, False])
def test_images_of_look_alikes_correct_random_votes_and_no_confusions(at_random):
    """Sixty kinds in twelve groups, whose members look alike."""
    planted = Planted(seed=2, counts=(25,) * 60, right=0.45, width=64)
    groups = np.repeat(planted.centres[:12], 5, axis=0)
    planted.centres = unit(groups + 0.2 * planted.centres)
    planted.x = planted.images(planted.truth)
    if not at_random:
        n = len(planted.truth)
        other = planted.truth // 5 * 5 + planted.rng.integers(5, size=n)
        planted.votes = np.where(planted.rng.random(n) < 0.45, planted.truth, other)
    gained = planted.right(planted.fit().labels_) - planted.right(planted.votes)
    assert gained > (0.08 if at_random else -0.005)


def test_images_overrule_random_votes_about_look_alikes_and_no_others():
    """Images that copy a labeller's confusions: of each pair of kinds it names one more often."""
    gained = []
    for seed in range(4):
        planted = Planted(seed, (25,) * 40, right=1.0, width=64)
        planted.centres = unit(np.repeat(planted.centres[:20], 2, axis=0))
        planted.x = planted.images(planted.truth)
        n = len(planted.truth)
        planted.votes = planted.truth ^ (planted.rng.random(n) < 0.4)
        before = planted.right(planted.votes)
        assert planted.right(planted.fit().labels_) > before - 0.005
        is_random = planted.rng.random(n) < 0.5
        planted.votes[is_random] = planted.rng.integers(40, size=is_random.sum())
        gained.append(planted.right(planted.fit().labels_) - planted.right(planted.votes))
    assert np.mean(gained) > 0.08, gained


def test_a_class_that_no_vote_names_has_no_image_and_no_new_image():
    planted = Planted(counts=(60, 60, 60, 60, 0), noise=0.4)
    votes = np.where(planted.votes == 4, 0, planted.votes)
    zero_shot = (planted.x @ planted.texts.T).argmax(axis=1)
    model = planted.fit({"a": votes}, planted.texts)
    assert (zero_shot == 4).any() and model.without_evidence_.tolist() == [4]
    assert not (model.labels_ == 4).any()
    assert not (model.predict(planted.images(planted.truth)) == 4).any()
    few = planted.fit({"a": np.where(np.arange(240) < 100, votes, -1)}, planted.texts)
    assert few.without_evidence_.size == 0  # most images have no vote


def test_class_texts_alone_are_adapted():
    planted = Planted(texts=0.4, noise=0.25, counts=(100,) * C)
    model = planted.fit({}, planted.texts)
    zero_shot = planted.right((planted.x @ planted.texts.T).argmax(axis=1))
    assert planted.right(model.labels_) > zero_shot + 0.02
    assert model.labellers_["zero_shot"].accuracy is None and not model.is_checked_


def test_class_texts_lose_part_of_their_lean():
    """All images share a direction, to which the texts of some classes are nearer."""
    gains = []
    for seed in range(8):
        planted = Planted(seed, noise=0.25, texts=0.1)
        shared = planted.rng.normal(size=planted.x.shape[1])
        shared -= np.linalg.lstsq(planted.centres.T, shared)[0] @ planted.centres
        planted.x = unit(planted.x + 5 * unit(shared[None])).astype(np.float32)
        towards = planted.rng.normal(size=(C, 1))
        planted.texts = planted.texts + 0.1 * towards * unit(shared[None])
        zero_shot = planted.right((planted.x @ planted.texts.T).argmax(axis=1))
        gains.append(planted.right(planted.fit({}, planted.texts).labels_) - zero_shot)
    assert min(gains) > 0 and np.mean(gains) > 0.15, gains


@pytest.mark.parametrize("k", [3, C])
def test_probabilities_say_more_than_the_first_choice(k):
    gains = []
    for seed in range(4):
        planted = Planted(seed, noise=0.4)
        logits = planted.rng.normal(size=(len(planted.truth), C)) + np.eye(C)[planted.truth]
        soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        best = np.argsort(-soft, axis=1)[:, :k]
        given = (best, np.take_along_axis(soft, best, axis=1)), best[:, 0]
        labels = [planted.fit({"a": one}).labels_ for one in given]
        gains.append(planted.right(labels[0]) - planted.right(labels[1]))
    assert np.mean(gains) > 0.03, gains


def test_probabilities_that_follow_from_the_first_choice_count_as_first_choices():
    for seed in range(6):
        planted = Planted(seed, noise=0.5, right=0.65, texts=0.7)
        similar = np.exp(12 * planted.texts @ planted.texts.T)
        soft = similar / similar.sum(axis=1, keepdims=True)
        firsts, probabilities = (
            planted.right(planted.fit({"a": one}).labels_)
            for one in (planted.votes, soft[planted.votes])
        )
        assert abs(probabilities - firsts) < 0.02


def test_class_texts_beside_votes_need_no_scale():
    """Weak texts of encoders whose scale is 25 to 400, beside votes that are righter."""
    found = []
    for seed in range(5):
        planted = Planted(seed, (20,) * 10, noise=0.3, right=0.65, texts=0.7)
        scaled = [planted.fit(texts=scale * planted.texts) for scale in (0.25, 1, 4)]
        models = [planted.fit(), *scaled]
        found.append([planted.right(model.labels_) for model in models])
    without, *scaled = np.mean(found, axis=0)
    assert min(scaled) > without - 0.02, (without, scaled)


def test_random_votes_beside_class_texts_count_as_random():
    planted = Planted(right=0.3, texts=0.05)
    zero_shot = planted.right((planted.x @ planted.texts.T).argmax(axis=1))
    given = {"a": planted.votes, "nobody": planted.rng.permutation(planted.votes)}
    model = planted.fit(given, planted.texts)
    assert planted.right(model.labels_) >= zero_shot > 0.95
    assert model.labellers_["nobody"].weight == 0


def test_votes_that_are_worse_than_class_texts_add_to_them():
    for seed in range(8):
        planted = Planted(seed, (25,) * 20, noise=0.3, right=0.25, texts=0.15)
        zero_shot = planted.right((planted.x @ planted.texts.T).argmax(axis=1))
        assert zero_shot > 2 * planted.right(planted.votes)
        assert planted.right(planted.fit(texts=planted.texts).labels_) >= zero_shot


def test_images_that_cannot_tell_classes_apart_change_nothing():
    """Each class is one of three kinds that look alike: only the labeller can know them."""
    planted = Planted(counts=(40,) * 5, noise=0.15)
    kind = planted.rng.integers(3, size=len(planted.truth))
    planted.truth = 3 * planted.truth + kind
    other = planted.truth - kind + planted.rng.integers(3, size=len(kind))
    planted.votes = np.where(planted.rng.random(len(kind)) < 0.6, planted.truth, other)
    model = LabelModel().fit(planted.x, {"a": planted.votes}, n_classes=15)
    assert planted.right(model.labels_) >= planted.right(planted.votes) - 0.005
    assert (
        model.labellers_["a"].accuracy is None and model.labellers_["a"].answers_needed > 50
    )
    if (model.labels_ == planted.votes).all():
        assert model.reason_.startswith("Each vote of a is the label: ")


def test_nobody_can_know_that_a_labeller_swaps_two_classes():
    """The images are the same whichever name a class has, so only answers can tell.

    This is why no property about accuracy holds for every labeller.
    """
    planted = Planted(right=1.0)
    swapped = np.array([1, 0, 2, 3, 4, 5])[planted.truth]
    assert (
        planted.right(planted.fit({"a": swapped}).labels_) == planted.right(swapped) < 0.7
    )
    rows = planted.rng.permutation(len(planted.truth))[:60]
    drawn = planted.fit({"a": swapped}, answers=planted.answers(rows, drawn=True))
    found = drawn.labellers_["a"].accuracy
    assert found.low < planted.right(swapped) < found.high and found.n == 60


def test_without_images_labels_are_not_below_the_majority():
    for seed in range(3):
        planted = Planted(seed)
        given = {
            str(k): planted.voter(right) for k, right in enumerate((0.9, 0.6, 0.6, 0.3))
        }
        given["copy"] = given["3"]
        tally = sum(np.eye(C)[one] for one in given.values())
        majority = (tally + 1e-3 * planted.rng.random(tally.shape)).argmax(axis=1)
        labels = LabelModel().fit(None, given).labels_
        assert planted.right(labels) >= planted.right(majority) - 0.005


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.15, 0.6])
@pytest.mark.parametrize("n", [20, 100])
def test_answers_do_not_harm_the_labels_of_others(noise, n):
    harm = []
    for seed in range(12):
        planted = Planted(seed, noise=noise)
        rows = planted.rng.permutation(len(planted.truth))[:n]
        others = np.setdiff1d(np.arange(len(planted.truth)), rows)
        before = planted.right(planted.fit().labels_, others)
        model = planted.fit(answers=planted.answers(rows))
        assert (
            planted.right(model.labels_, rows) == 1 and (model.confidence_[rows] == 1).all()
        )
        harm.append(before - planted.right(model.labels_, others))
    assert np.mean(harm) <= 0.003


@pytest.mark.parametrize("n", [60, 240])
def test_answers_win_over_class_texts_that_are_wrong(n):
    planted = Planted(noise=0.3, texts=5.0)
    rows = planted.rng.permutation(len(planted.truth))[:n]
    others = np.setdiff1d(np.arange(len(planted.truth)), rows)
    model = planted.fit({}, planted.texts, planted.answers(rows))
    right = planted.right(model.labels_, others)
    assert right > 0.8 and abs(model.confidence_[others].mean() - right) < 0.1
    assert model.is_checked_


def test_answers_alone_label_the_others():
    planted = Planted()
    model = planted.fit({}, answers={row: int(planted.truth[row]) for row in range(40)})
    assert planted.right(model.labels_) > 0.9 and model.labellers_ == {}


def test_an_answer_may_allow_several_classes_or_none():
    planted = Planted(right=1.0)
    row = int(np.flatnonzero(planted.truth == 0)[0])
    model = planted.fit(answers={row: [1, 2]})
    assert model.labels_[row] in (1, 2)
    none = Answers(np.array([row]), np.zeros((1, C)), np.zeros(1, bool))
    model = planted.fit(answers=none)
    assert model.confidence_[row] == 0 and planted.right(model.labels_) > 0.99


def test_no_checking_answer_has_a_part_in_what_it_checks():
    planted = Planted()
    rows = np.arange(0, 300, 6)
    found = planted.fit(answers=planted.answers(rows, drawn=True))
    shares = planted.answers(rows).shares.copy()
    shares[7] = np.eye(C)[(planted.truth[rows[7]] + 1) % C]
    other = planted.fit(answers=Answers(rows, shares, np.ones(len(rows), bool)))
    assert found.held_out_labels_[7] == other.held_out_labels_[7]
    assert found.held_out_confidence_[7] == other.held_out_confidence_[7]
    assert np.array_equal(found.heads_[0].held_out[7], other.heads_[0].held_out[7])
    assert np.mean(found.held_out_labels_ == planted.truth[rows]) > 0.9


def test_many_answers_need_little_memory():
    planted = Planted(counts=(2500,) * 4, width=8)
    answers = planted.answers(np.arange(10_000))
    tracemalloc.start()
    planted.fit(answers=answers)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


# --- the accuracy of labellers -------------------------------------------------------------------


def test_an_accuracy_is_stated_where_views_agree():
    planted = Planted(right=0.9, noise=0.25, counts=(100,) * C)
    one = planted.fit().labellers_["a"]
    assert one.accuracy is not None and one.answers_needed == 0
    assert abs(one.accuracy.value - planted.right(planted.votes)) < 0.03
    few = Planted(right=0.9, noise=0.25, counts=(20,) * C).fit().labellers_["a"]
    assert few.accuracy is None and few.answers_needed > 50
    junk = planted.rng.integers(C, size=len(planted.truth))
    found = planted.fit({"a": planted.votes, "junk": junk}, planted.texts).labellers_
    assert found["junk"].accuracy is None and found["zero_shot"].accuracy is None
    assert found["junk"].answers_needed > 100


def test_few_answers_state_no_accuracy_and_taught_ones_stand_for_themselves():
    """A labeller that is wrong about all of 60 taught images, and right about the other 360."""
    labels, has = np.zeros(420, int), np.ones(420, bool)
    shares = np.eye(2)[np.r_[np.ones(60, int), np.zeros(40, int)]]
    drawn = np.arange(100) >= 60
    interval = by_answers(labels, has, Answers(np.arange(100), shares, drawn))
    assert interval.value == pytest.approx(360 / 420) and interval.low < 0.82
    few = Answers(np.arange(61), shares[:61], drawn[:61])
    assert by_answers(labels, has, few) is None


def test_zero_shot_has_the_accuracy_of_the_texts_as_they_are():
    planted = Planted(texts=1.0)
    rows = planted.rng.permutation(len(planted.truth))[:200]
    shuffled = planted.rng.permutation(planted.votes)
    answers = planted.answers(rows, drawn=True)
    found = planted.fit({"a": shuffled}, planted.texts, answers).labellers_["zero_shot"]
    zero_shot = (planted.x @ planted.texts.T).argmax(axis=1)
    assert found.accuracy.value == pytest.approx(planted.right(zero_shot, rows), abs=0.01)


# --- the interface -------------------------------------------------------------------------------


def test_all_forms_of_votes_mean_the_same():
    planted = Planted()
    given = planted.votes.copy()
    given[:30] = -1
    table = np.eye(C)[given] * (given >= 0)[:, None]
    options = np.stack([given, np.full(len(given), -1)], axis=1)
    pair = options, np.stack([np.ones(len(given)), np.zeros(len(given))], axis=1)
    first, *others = (planted.fit({"a": one}) for one in (given, table, pair))
    for other in others:
        assert np.array_equal(first.labels_, other.labels_)
        assert np.allclose(first.confidence_, other.confidence_)
    assert planted.fit({"a": given}).confidence_.tolist() == first.confidence_.tolist()


def test_a_useless_encoder_changes_little_and_a_better_one_helps():
    weak = Planted(noise=0.8)
    other = Planted(1, noise=0.15)
    noise = weak.rng.normal(size=(len(weak.truth), 16)).astype(np.float32)
    clear = unit(other.centres[weak.truth] + 0.15 * weak.rng.normal(size=weak.x.shape))
    given = {"a": weak.votes, "b": weak.voter(0.6)}
    alone = weak.fit(given)
    with_noise = LabelModel().fit([weak.x, noise], given)
    assert abs(weak.right(with_noise.labels_) - weak.right(alone.labels_)) < 0.03
    with_clear = LabelModel().fit([weak.x, clear], given)
    assert weak.right(with_clear.labels_) > max(0.95, weak.right(alone.labels_))
    assert weak.right(with_clear.predict([weak.x, clear])) > 0.95
    assert [head.coef.shape for head in with_clear.heads_] == [(C, 32), (C, 64)]


def test_a_sample_and_parts_give_almost_the_labels_of_all_images(monkeypatch):
    planted = Planted(counts=(300,) * C, noise=0.3)
    rows = np.arange(0, 1800, 9)
    answers = planted.answers(rows, drawn=True)
    whole = planted.fit(texts=planted.texts, answers=answers)
    monkeypatch.setattr(label_model, "SAMPLE", 700 * C)
    monkeypatch.setattr(votes, "CELLS", 100 * C)
    parts = planted.fit(texts=planted.texts, answers=answers)
    assert np.mean(parts.labels_ == whole.labels_) > 0.98
    assert planted.right(parts.labels_) > planted.right(planted.votes) + 0.1
    assert np.allclose(parts.probabilities([1, 2]).sum(axis=1), 1)


X, V = np.eye(6), np.arange(6) % 3


@pytest.mark.parametrize(
    ("given", "options", "named"),
    [
        ((X * np.nan, {"a": V}), {}, "Image features"),
        ((X.tolist(), {"a": V}), {}, "Image features"),
        ((X, {"a": V[:5]}), {}, "lengths"),
        ((X[:0], {"a": V[:0]}), {}, "lengths"),
        ((X, {"a": np.array([0, 1, np.nan, 0, 1, 2])}), {}, "Votes"),
        ((X, {"a": np.array([*"abcabc"])}), {}, "Votes"),
        ((X, {"a": (V[:, None], -np.ones((6, 1)))}), {}, "Votes"),
        ((X, {"a": V - 2}), {}, "Votes"),
        ((X, {"a": V}), {"n_classes": 2}, "n_classes"),
        ((X,), {"answers": {0: 1}}, "n_classes"),
        ((X, {"a": V}), {"answers": {0: -1}}, "row 0"),
        ((X, {"a": V}), {"answers": {0: [1, 3]}}, "row 0"),
        ((X, {"a": V}), {"answers": {6: 1}}, "rows"),
        ((X, {"a": V}), {"text_features": np.eye(3)}, "text_features"),
        ((None, {"a": V}), {"text_features": np.eye(3)}, "text_features"),
        ((None, {"a": V}), {"text_features": np.ones(3)}, "text_features"),
        ((None,), {}, "features or votes"),
        ((None, {"ranks": np.array([[2, 0], [1, -1]])}), {}, "Ranked classes"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(given, options, named):
    with pytest.raises(ValueError, match=named):
        LabelModel().fit(*given, **options)


def test_new_images_of_another_width_are_refused():
    with pytest.raises(ValueError, match="5 numbers"):
        LabelModel().fit(X, {"a": V}).predict(X[:, :5])


def test_tensors_and_data_frames_are_taken_as_arrays():
    planted = Planted()
    wanted = planted.fit(texts=planted.texts)
    for kind in (torch.from_numpy, pd.DataFrame):
        x, texts = kind(planted.x), kind(planted.texts)
        found = LabelModel().fit(x, {"a": planted.votes}, texts)
        assert np.array_equal(found.labels_, wanted.labels_)
        assert np.array_equal(found.predict(x), wanted.predict(planted.x))


def test_text_as_the_row_of_an_answer_is_refused():
    with pytest.raises(ValueError, match="rows"):
        LabelModel().fit(
            None, {"model": np.zeros(4, int)}, answers={"a.png": 0}, n_classes=2
        )
