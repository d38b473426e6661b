"""The page of `latteclip classes`: its server, and in a real browser."""

import http.client
import json

import pytest
from support.unnamed import run
from support.visits import running

from latteclip.core.class_history import BY_HAND, edited_classes, note_edit
from latteclip.core.errors import UserError
from latteclip.discover.classes import ClassesPage, ClassesServer, classes
from latteclip.discover.proposal import Action

page_tests = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed"
)


@pytest.fixture
def server(results):
    with running(ClassesServer(ClassesPage(results))) as server:
        yield server


def put(server, content, *, token=None, **headers):
    """Return the status of a request that saves actions."""
    host = f"127.0.0.1:{server.server_port}"
    usual = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(host, timeout=20)
    path = f"/{token or server.token}/actions"
    connection.request("PUT", path, content, usual | headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def names(page):
    return sorted(page.locator("article h3 bdi").all_inner_texts())


def actions(results):
    return [
        one["do"] for one in json.loads((results / "classes.json").read_text())["actions"]
    ]


def test_requests_of_strangers_and_wrong_actions_save_nothing(server, results):
    good = json.dumps({"actions": [{"do": "drop", "of": 0}]})
    revision = server.session.saved().revision
    assert put(server, good, token="x" * 32)[0] == 404
    assert put(server, good, Origin="http://evil.example")[0] == 403
    assert put(server, good, **{"Content-Type": "text/plain"})[0] == 415
    assert (
        put(server, '{"actions": [{"do": "drop", "of": 9}]}', **{"If-Match": revision})[0]
        == 400
    )
    assert not (results / "classes.json").exists()
    assert put(server, good, **{"If-Match": "an older one"})[0] == 412
    assert put(server, good, **{"If-Match": f'"{revision}"'})[0] == 200
    assert actions(results) == ["drop"]


def test_rename_merge_split_undo_by_keyboard_and_go_on(server, visit, results):
    page = visit(server.address)
    expect = page_tests.expect
    expect(page.locator("#count")).to_contain_text("Nobody has looked")
    before = names(page)
    cup = page.locator("article", has=page.get_by_text("cup", exact=True)).first
    cup.focus()
    page.keyboard.press("r")
    page.keyboard.type("my <i>cup")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Saved")
    assert "my <i>cup" in names(page)
    first, second = page.locator("article").first, page.locator("article").nth(1)
    first.focus()
    page.keyboard.press("m")
    second.focus()
    page.keyboard.press("m")
    expect(page.locator("article")).to_have_count(2)
    page.keyboard.press("s")  # the focus is on what was merged
    expect(page.locator("article")).to_have_count(3)
    page.keyboard.press("Backspace")
    expect(page.locator("article")).to_have_count(2)
    page.keyboard.press("Backspace")
    expect(page.locator("article")).to_have_count(3)
    page.wait_for_function("() => saving.then(() => true)")
    assert actions(results) == ["rename"]
    again = visit(server.address)
    assert names(again) == sorted({*before, "my <i>cup"} - {"cup"})
    run(results, actions_path=str(results / "classes.json"))
    assert "my <i>cup" in (results / "classes.txt").read_text().splitlines()


def test_a_second_tab_takes_what_the_first_has_saved(server, visit, results):
    first, second = visit(server.address), visit(server.address)
    expect = page_tests.expect
    first.locator("article").first.get_by_role("button", name="Drop").click()
    expect(first.locator("#status")).to_contain_text("Saved")
    second.locator("article").last.get_by_role("button", name="Drop").click()
    expect(second.locator("#trouble")).to_contain_text("Another page")
    expect(second.locator("article")).to_have_count(2)
    assert actions(results) == ["drop"]


def test_an_answer_to_a_question_changes_the_classes(server, visit, results):
    page = visit(server.address)
    asked = page.locator("#asked").inner_text()
    page.keyboard.press("n")
    page_tests.expect(page.locator("#asked")).not_to_have_text(asked)
    page.keyboard.press("y")
    page.wait_for_function("() => saving.then(() => true)")
    assert actions(results)[0] == "keep"
    assert actions(results)[1] in ("merge", "split")


def test_the_offline_page_exports_what_the_command_imports(visit, results, tmp_path):
    output = tmp_path / "classes.html"
    classes(str(results), offline=str(output))
    assert output.stat().st_size < 5_000_000
    page = visit(output.as_uri())
    page.locator("article").first.get_by_role("button", name="Drop").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    exported = tmp_path / "exported.json"
    download.value.save_as(exported)
    classes(str(results), actions=str(exported))
    assert actions(results) == ["drop"]
    exported.write_text("no actions")
    with pytest.raises(UserError, match=r"exported\.json"):
        classes(str(results), actions=str(exported))


def test_classes_edited_by_hand_have_no_page_and_their_history_stays(results):
    listed = results / "classes.txt"
    proposed = listed.read_text()
    listed.write_text("cup\nhound\ncar\n")
    edited = edited_classes(results)
    note_edit(results, edited)
    note_edit(results, edited)  # the next run
    with pytest.raises(UserError, match=r"classes\.txt"):
        ClassesPage(results)
    listed.write_text(proposed)
    page = ClassesPage(results)
    page.save([Action(do="drop", of=0)], page.saved().revision)
    history = json.loads((results / "classes.json").read_text())
    assert history[BY_HAND] == [["cup", "hound", "car"]]
    assert actions(results) == ["drop"]


def test_a_dataset_with_classes_of_its_own_has_no_page(tmp_path):
    with pytest.raises(UserError, match=r"discovery\.json"):
        ClassesPage(tmp_path)
