"""Classes proposed by names and features, and a person's actions."""

import numpy as np
import pytest

from latteclip.core.errors import UserError
from latteclip.discover.grouping import NamedFeatures
from latteclip.discover.names import phrases, read_names
from latteclip.discover.proposal import Action, replay
from latteclip.discover.propose import propose

KINDS = 6


@pytest.fixture(scope="module")
def world():
    """Six kinds, whose names are wrong for a fifth of the images; two kinds have two names each."""
    rng = np.random.default_rng(1)
    truth = np.repeat(np.arange(KINDS), 40)
    centres = rng.normal(size=(KINDS, 24))
    features = (centres[truth] + 0.6 * rng.normal(size=(len(truth), 24))).astype(np.float32)
    features -= features.mean(axis=0)
    features /= np.linalg.norm(features, axis=1).mean()
    called = [["cup", "mug"], ["dog", "hound"], ["car"], ["fish"], ["tree"], ["lamp"]]
    wrong = rng.random(len(truth)) < 0.2
    named = np.where(wrong, rng.integers(KINDS, size=len(truth)), truth)
    answers = [str(rng.choice(called[k])) for k in named]
    return truth, NamedFeatures.of(features, read_names(answers))


def proposal_of(evidence, wanted=None):
    return propose([f"{i}.jpg" for i in range(len(evidence.best))], evidence, wanted)


@pytest.fixture(scope="module")
def proposed(world):
    return proposal_of(world[1])


def right(labels, truth):
    """The share of images in the class in which most of their kind are, none twice."""
    table = np.zeros((labels.max() + 1, KINDS))
    np.add.at(table, (labels, truth), 1)
    best = table.argmax(axis=0)
    assert len(set(best)) == KINDS
    return sum(table[best[k], k] for k in range(KINDS)) / len(truth)


def test_synonyms_merge_and_wrong_names_follow_the_features(world, proposed):
    truth, evidence = world
    about = proposed.about
    assert len(about.names) == KINDS
    assert right(proposed.labels, truth) > 0.95
    assert {names[0] for names in about.names} >= {"car", "fish", "tree", "lamp"}
    for names in about.names:
        if {"cup", "mug"} & set(names[:1]):
            assert {"cup", "mug"} <= set(names[:2])
    again = proposal_of(evidence)
    assert (again.labels == proposed.labels).all()  # nothing is random
    assert again.about == about
    assert len(proposal_of(evidence, 4).about.names) == 4


def test_names_that_say_nothing_only_name_what_k_means_groups(world):
    truth, evidence = world
    rng = np.random.default_rng(2)
    answers = [f"word{number}" for number in rng.integers(3, size=len(truth))]
    found = proposal_of(NamedFeatures.of(evidence.features, read_names(answers)), KINDS)
    assert right(found.labels, truth) > 0.95
    assert {names[0] for names in found.about.names} > {"word0", "word1", "word2"}


def test_actions_are_replayed_in_their_order(proposed):
    actions = [
        Action(do="merge", of=0, other=1),
        Action(do="rename", of=0, name="  My\nclass  "),
        Action(do="drop", of=2),
        Action(do="leave_out", of=3),
    ]
    names, owner = replay(proposed.about, actions)
    assert (names[0], sorted(names)) == ("My class", [0, 4, 5])
    assert owner.tolist() == [0, 0, -1, -2, 4, 5]


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
    names = proposed.about.names
    number = next(k for k, each in enumerate(names) if each[0] != "car")
    action = {key: number if value == 0 else value for key, value in action.items()}
    with pytest.raises(UserError, match=r"classes\.json"):
        replay(proposed.about, [Action(**action)])


# --- names in answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Leopard.", ["leopard"]),
        ("The image shows a leopard in tall grass.", ["leopard"]),
        ("man with red hair", ["man"]),
        ("Watch, wristwatch, timepiece.", ["watch", "wristwatch", "timepiece"]),
        ("sea-horse\nwater", ["sea horse", "water"]),
        ("... !!! \x00\x1b[31m", ["31m"]),
        ("<b>dog</b>", ["dog"]),
        ("x" * 10_000, ["x" * 40]),
    ],
)
def test_an_answer_gives_the_names_in_it(answer, found):
    assert phrases(answer) == found
