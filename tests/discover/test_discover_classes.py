"""The stages that propose classes."""

import json

import pytest
from support.made_results import N_UNNAMED, discover, write_unnamed

from latteclip.core.errors import UserError
from latteclip.discover.proposal import FILE, read_proposal


def act(results, *actions):
    """Write what a person did, as the page does, and run the stages again."""
    proposal = read_proposal(results / FILE).about.digest
    path = results / "classes.json"
    path.write_text(json.dumps({"proposal": proposal, "actions": actions}))
    discover(results, actions_path=str(path))


def test_classes_names_and_members_are_written(results):
    names = (results / "classes.txt").read_text().splitlines()
    assert len(names) == 3
    assert {"cup", "dog"} < set(names)
    described = json.loads((results / "discovery.json").read_text())
    assert described == {"actions": 0, "classes": names}
    labels = read_proposal(results / FILE).labels.tolist()
    assert labels == labels[:3] * (N_UNNAMED // 3)
    before = (results / "discovery.json").read_bytes()
    discover(results)
    assert (results / "discovery.json").read_bytes() == before


def test_classes_and_members_follow_what_a_person_does(results):
    names = (results / "classes.txt").read_text().splitlines()
    act(results, {"do": "rename", "of": 1, "name": "hound"}, {"do": "drop", "of": 0})
    assert (results / "classes.txt").read_text().splitlines() == ["hound", names[2]]


@pytest.mark.parametrize(
    ("answers", "spread"),
    [
        ([""] * 20, 1),
        (["thing"] * 20, 1),
        ([f"name{i}" for i in range(20)], 1),
        (["\U0001f600"] * 20, 1),
        (["cup", "dog", "car"] * 12, 0),
    ],
    ids=["none", "one word", "singletons", "emoji", "images that look alike"],
)
def test_images_of_fewer_than_two_classes_are_an_error(tmp_path, answers, spread):
    write_unnamed(tmp_path, answers, spread)
    with pytest.raises(UserError, match=r"names\.parquet"):
        discover(tmp_path)
    assert not (tmp_path / "classes.txt").exists()


def test_hostile_names_are_one_plain_line_each(tmp_path):
    hostile = ["<img src=x onerror=alert(1)>", "../../etc/passwd", "x" * 10_000]
    write_unnamed(tmp_path, [hostile[i % 3] + "\n\u202e\r" for i in range(N_UNNAMED)])
    discover(tmp_path)
    names = (tmp_path / "classes.txt").read_bytes().decode().split("\n")
    assert names.pop() == ""
    assert len(names) == len(set(names)) == 3
    assert all(name.isprintable() and 0 < len(name) <= 100 for name in names)
    assert not any(set(name) & set("<>/\\") for name in names)


@pytest.mark.parametrize(
    "content",
    ["no JSON", '{"actions": 3}', '{"proposal": "", "actions": [{"do": "drop", "of": 0}]}'],
)
def test_damaged_actions_and_those_of_another_proposal_are_refused(results, content):
    path = results / "classes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"classes\.json"):
        discover(results, actions_path=str(path))
