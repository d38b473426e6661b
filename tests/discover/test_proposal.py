"""Classes proposed by names and looks, and a person's actions."""

import json

import numpy as np
import pytest

from latteclip.core.errors import UserError
from latteclip.discover import grouping, looks, proposal
from latteclip.discover.grouping import Evidence
from latteclip.discover.names import read_names
from latteclip.discover.proposal import Action, propose, questions, replay

KINDS = 6


@pytest.fixture(scope="module")
def world():
    """Six kinds, whose names are wrong for a fifth of the images; two kinds have two names each."""
    rng = np.random.default_rng(1)
    truth = np.repeat(np.arange(KINDS), 40)
    centres = rng.normal(size=(KINDS, 24))
    looks = (centres[truth] + 0.6 * rng.normal(size=(len(truth), 24))).astype(np.float32)
    looks -= looks.mean(axis=0)
    looks /= np.linalg.norm(looks, axis=1).mean()
    called = [["cup", "mug"], ["dog", "hound"], ["car"], ["fish"], ["tree"], ["lamp"]]
    named = np.where(
        rng.random(len(truth)) < 0.2, rng.integers(KINDS, size=len(truth)), truth
    )
    answers = [str(rng.choice(called[k])) for k in named]
    return truth, Evidence.of(looks, read_names(answers))


@pytest.fixture(scope="module")
def proposed(world):
    return propose(world[1])


def right(labels, truth):
    """The share of images in the class in which most of their kind are, none twice."""
    table = np.zeros((labels.max() + 1, KINDS))
    np.add.at(table, (labels, truth), 1)
    best = table.argmax(axis=0)
    assert len(set(best)) == KINDS
    return sum(table[best[k], k] for k in range(KINDS)) / len(truth)


def test_synonyms_merge_and_wrong_names_follow_looks(world, proposed):
    truth, _ = world
    assert (len(proposed.classes), proposed.suggested) == (KINDS, KINDS)
    assert right(proposed.labels(), truth) > 0.95
    assert {names[0] for names in proposed.names} >= {"car", "fish", "tree", "lamp"}
    for names in proposed.names:
        if {"cup", "mug"} & set(names[:1]):
            assert {"cup", "mug"} <= set(names[:2])


def test_a_number_is_kept_and_nothing_is_random(world, proposed):
    _, evidence = world
    assert len(propose(evidence, 4).classes) == 4
    again = propose(evidence)
    assert (again.leaves == proposed.leaves).all()
    assert again.names == proposed.names


def test_names_that_say_nothing_only_label_what_looks_group(world):
    truth, evidence = world
    rng = np.random.default_rng(2)
    answers = [f"word{number}" for number in rng.integers(3, size=len(truth))]
    wordy = Evidence.of(evidence.looks, read_names(answers))
    found = propose(wordy, KINDS)
    assert found.by_looks
    assert len(found.classes) == KINDS
    assert right(found.labels(), truth) > 0.95
    assert {names[0] for names in found.names} > {"word0", "word1", "word2"}
    assert not propose(evidence).by_looks


def test_scatter_is_the_mean_squared_distance_of_plain_loops(world):
    truth, evidence = world
    names, r = evidence.names.toarray(), evidence.reliability
    total = 0.0
    for k in range(KINDS):
        rows = truth == k
        mean = evidence.looks[rows].mean(axis=0)
        name = np.average(names[rows], axis=0, weights=r[rows])
        total += ((evidence.looks[rows] - mean) ** 2).sum()
        total += grouping.NAMES * (r[rows] * ((names[rows] - name) ** 2).sum(axis=1)).sum()
    assert grouping.scatter(evidence, truth) == pytest.approx(total / len(truth), rel=1e-4)


def test_linked_means_are_linked_again_where_there_are_many(world, monkeypatch):
    truth, evidence = world
    monkeypatch.setattr(looks, "MAX_GROUPS", 20)
    labels = looks.linked(evidence.looks)
    assert KINDS <= labels.max() + 1 <= 20
    for group in range(labels.max() + 1):
        assert len(set(truth[labels == group])) == 1


def test_costs_do_not_depend_on_the_number_of_images(world):
    """Every image twice leaves the curve as it is."""
    _, evidence = world
    labels = grouping.group(evidence).labels
    twice = Evidence(
        np.concatenate([evidence.looks] * 2),
        grouping.scipy.sparse.vstack([evidence.names] * 2).tocsr(),
        np.concatenate([evidence.reliability] * 2),
        *(np.concatenate([evidence.best] * 2), evidence.terms, evidence.weights),
    )
    once = [step.cost for step in grouping.merges(evidence, labels)]
    both = [step.cost for step in grouping.merges(twice, np.concatenate([labels] * 2))]
    np.testing.assert_allclose(once, both, rtol=1e-4)


def test_costs_of_merges_are_those_of_plain_loops(world):
    _, evidence = world
    labels = grouping.group(evidence).labels
    first = grouping.merges(evidence, labels)[0]
    found = {}
    names = evidence.names.toarray()
    for i in range(labels.max() + 1):
        for j in range(i):
            cost = 0.0
            for x, weights, factor in (
                (evidence.looks, np.ones(len(labels)), 1.0),
                (names, evidence.reliability, grouping.NAMES),
            ):
                a, b = weights[labels == i], weights[labels == j]
                mean = [
                    np.average(x[labels == k], axis=0, weights=w)
                    for k, w in ((i, a), (j, b))
                ]
                half = a.sum() * b.sum() / (a.sum() + b.sum())
                cost += factor * ((mean[0] - mean[1]) ** 2).sum() * half**0.5
            found[j, i] = cost / (len(labels) / (labels.max() + 1) / 2) ** 0.5
    best = min(found, key=found.__getitem__)
    assert (first.into, first.taken) == best
    assert first.cost == pytest.approx(found[best], rel=1e-4)


def test_actions_are_replayed_in_their_order(proposed):
    actions = [
        Action(do="merge", of=0, other=1),
        Action(do="split", of=0),
        Action(do="rename", of=0, name="  My\nclass  "),
        Action(do="drop", of=2),
        Action(do="none", of=3, image="a.jpg"),
    ]
    state = replay(proposed, actions)
    parts = sorted([state.leaves[0], state.leaves[KINDS]])
    assert parts == sorted(proposed.classes[:2])  # the split undoes the merge
    assert state.names[0] == "My class"
    assert (2 in state.leaves, state.none) == (False, {"a.jpg"})
    assert len(set(state.names.values())) == len(state.names)


@pytest.mark.parametrize(
    "action",
    [
        {"do": "rename", "of": 0, "name": " "},
        {"do": "rename", "of": 0, "name": "CAR"},
        {"do": "merge", "of": 0, "other": 0},
        {"do": "merge", "of": 0},
        {"do": "merge", "of": 0, "other": 99},
        {"do": "drop", "of": 99},
    ],
)
def test_an_action_that_the_classes_do_not_allow_is_named(proposed, action):
    number = next(k for k, names in enumerate(proposed.names) if names[0] != "car")
    action = action | {"of": number} if action["of"] == 0 else action
    if action.get("other") == 0:
        action["other"] = number
    with pytest.raises(UserError, match=r"classes\.json"):
        replay(proposed, [Action(**action)])


def test_questions_end_and_none_is_asked_twice(proposed):
    state, asked = proposal.start(proposed), set()
    while found := questions(proposed, state, 1):
        key = state.key(found[0].of, found[0].other), found[0].do
        assert key not in asked
        asked.add(key)
        keep = Action(do="keep", of=found[0].of, other=found[0].other)
        assert proposal.apply(state, keep, proposed) == ""
    assert len(asked) >= KINDS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"actions": 3}',
        '{"actions": [{"do": "fly", "of": 1}]}',
        "[" * 10_000,
    ],
)
def test_what_is_no_list_of_actions_is_refused(content):
    with pytest.raises(UserError, match="The request"):
        proposal.parse_actions(content, "The request")
    assert proposal.parse_actions(json.dumps({"actions": [{"do": "drop", "of": 1}]}), "x")


@pytest.mark.parametrize(
    "answers", [[""] * 30, ["thing"] * 30, [f"name{i}" for i in range(30)]]
)
def test_images_without_telling_names_are_one_group(answers):
    looks = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    found = propose(Evidence.of(looks, read_names(answers)))
    assert len(found.classes) == 1
    assert found.labels().tolist() == [0] * 30


def test_images_that_look_all_alike_are_grouped_by_their_names():
    looks = np.zeros((40, 8), np.float32)
    found = propose(Evidence.of(looks, read_names(["cat", "dog"] * 20)))
    assert len(found.classes) >= 1
    assert np.isfinite([step.cost for step in found.steps]).all()
