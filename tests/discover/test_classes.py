"""The stages that propose classes, and the page of `latteclip classes`."""

import json

import pytest
from support.made_results import N_UNNAMED, discover, write_unnamed

from latteclip.core.errors import UserError
from latteclip.discover.classes import ClassesPage


@pytest.fixture
def results(tmp_path):
    """A proposal of three classes, of which one has a hostile name."""
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    called = ["cup", "dog", "ca\u202er </script>"]
    write_unnamed(folder, [called[number % 3] for number in range(N_UNNAMED)])
    discover(folder)
    return folder


def save(page, **action):
    return page.save(json.dumps([action] if action else []).encode())


def actions(results):
    path = results / "classes.json"
    return [one["do"] for one in json.loads(path.read_text())["actions"]]


# --- stages --------------------------------------------------------------------------------------


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
    "content", ["no JSON", '{"proposal": "", "actions": [{"do": "drop", "of": 0}]}']
)
def test_damaged_actions_and_those_of_another_proposal_are_refused(results, content):
    """Neither is lost."""
    path = results / "classes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"classes\.json"):
        discover(results, actions_path=str(path))
    [kept] = results.glob("classes.json*")
    assert kept.read_text() == content
    assert (kept == path) == content.startswith("{")


# --- the page ------------------------------------------------------------------------------------


def test_two_pages_follow_each_other_and_a_refused_action_leaves_no_trace(results):
    first, second = ClassesPage(results), ClassesPage(results)
    for action in ({"do": "fly", "of": 0}, {"do": "drop", "of": 0, "image": "../../x"}):
        with pytest.raises(UserError):
            save(first, **action)
    assert not (results / "classes.json").exists()
    save(first, do="drop", of=0)
    with pytest.raises(UserError, match=r"classes\.json"):
        save(second, do="drop", of=0)  # the class is gone
    save(second, do="rename", of=1, name="hound")
    assert second.state() == first.state()
    assert actions(results) == ["drop", "rename"]
    before = (results / "classes.txt").read_text().splitlines()
    discover(results, actions_path=str(results / "classes.json"))
    assert (results / "classes.txt").read_text().splitlines() == ["hound", before[2]]
    save(second)  # undo
    assert actions(results) == ["drop"]


def test_pictures_are_of_images_of_the_dataset(results):
    page = ClassesPage(results)
    row, _ = page.state()["classes"][0]["pictures"][0]
    assert page.picture(row).endswith(f"{row:03d}.png")
    assert page.picture(36) is None


def test_classes_edited_by_hand_have_no_page(results):
    listed = results / "classes.txt"
    listed.write_text("cup\nhound\ncar\n")
    with pytest.raises(UserError, match=r"classes\.txt"):
        ClassesPage(results)
