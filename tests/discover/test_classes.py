"""The page of `latteclip classes`."""

import json
from threading import Thread

import pytest
from pydantic import ValidationError

from latteclip.core.errors import UserError
from latteclip.discover.classes import ClassesPage


def save(page, **action):
    return page.save(json.dumps({"action": action or None}).encode())


def actions(results):
    path = results / "classes.json"
    return [one["do"] for one in json.loads(path.read_text())["actions"]]


@pytest.mark.parametrize(
    "action",
    [
        {"do": "drop", "of": 9},
        {"do": "fly", "of": 0},
        {"do": "drop", "of": 0, "image": "../../etc/passwd"},
    ],
)
def test_an_action_about_what_is_not_there_is_refused_and_leaves_no_trace(results, action):
    page = ClassesPage(results)
    with pytest.raises((UserError, ValidationError)):
        save(page, **action)
    assert not (results / "classes.json").exists()
    save(page, do="drop", of=0)
    assert actions(results) == ["drop"]


def test_pictures_are_of_images_of_the_dataset(results):
    page = ClassesPage(results)
    row = page.state()["classes"][0]["pictures"][0]["row"]
    assert page.picture(row).endswith(f"{row:03d}.png")
    assert page.picture(36) is None


def test_two_pages_at_once_lose_no_action(results):
    def rename(page, of):
        for number in range(8):
            save(page, do="rename", of=of, name=f"class {of} {number}")

    pages = [ClassesPage(results), ClassesPage(results)]
    threads = [Thread(target=rename, args=(page, of)) for of, page in enumerate(pages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(actions(results)) == 16


def test_two_pages_follow_each_other_and_a_refused_action_leaves_no_trace(results):
    first, second = ClassesPage(results), ClassesPage(results)
    save(first, do="drop", of=0)
    with pytest.raises(UserError, match=r"classes\.json"):
        save(second, do="drop", of=0)  # the class is gone
    save(second, do="rename", of=1, name="hound")
    assert second.state() == first.state()
    assert actions(results) == ["drop", "rename"]
    save(second)  # undo
    assert actions(results) == ["drop"]


def test_classes_edited_by_hand_have_no_page(results):
    listed = results / "classes.txt"
    listed.write_text("cup\nhound\ncar\n")
    with pytest.raises(UserError, match=r"classes\.txt"):
        ClassesPage(results)
