"""The page of `latteclip classes`, by its server."""

import http.client
import json

import pytest
from support.visits import running

from latteclip.audit.server import QuestionServer
from latteclip.core.errors import UserError
from latteclip.discover.classes import Change, ClassesHandler, ClassesPage
from latteclip.discover.proposal import Action

DROP = Action(do="drop", of=0)


@pytest.fixture
def server(results):
    with running(QuestionServer(ClassesPage(results), handler=ClassesHandler)) as server:
        yield server


def request(server, method, path, content=None, *, token=None, **headers):
    """Return the status and the body of a request."""
    host = f"127.0.0.1:{server.server_port}"
    usual = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request(method, f"/{token or server.token}/{path}", content, usual | headers)
    reply = connection.getresponse()
    return reply.status, reply.read()


def actions(results):
    path = results / "classes.json"
    return [one["do"] for one in json.loads(path.read_text())["actions"]]


def test_requests_of_strangers_and_wrong_actions_save_nothing(server, results):
    good = Change(action=DROP).model_dump_json()

    def put(content, **options):
        return request(server, "PUT", "actions", content, **options)[0]

    assert put(good, token="x" * 32) == 404
    assert put(good, Origin="http://evil.example") == 403
    assert put(good, **{"Content-Type": "text/plain"}) == 415
    for wrong in (good.replace('"of":0', '"of":9'), good.replace("drop", "fly"), "[" * 99):
        assert put(wrong) == 400
    assert not (results / "classes.json").exists()
    assert put(good) == 200
    assert actions(results) == ["drop"]


def test_pictures_are_of_images_of_the_dataset(server):
    picture = server.session.state()["classes"][0]["pictures"][0]["row"]
    status, body = request(server, "GET", f"image/{picture}")
    assert (status, body[8:12]) == (200, b"WEBP")
    for path in ("image/36", "image/-1", "image/../classes.txt", "names.parquet"):
        assert request(server, "GET", path)[0] == 404


def test_two_pages_lose_no_action_and_a_refused_one_leaves_no_trace(results):
    first, second = ClassesPage(results), ClassesPage(results)
    first.change(DROP)
    with pytest.raises(UserError, match=r"classes\.json"):
        second.change(DROP)  # the class is gone
    second.change(Action(do="rename", of=1, name="hound"))
    assert second.state() == first.state()
    assert actions(results) == ["drop", "rename"]
    second.change(None)  # undo
    assert actions(results) == ["drop"]


def test_classes_edited_by_hand_have_no_page(results):
    listed = results / "classes.txt"
    proposed = listed.read_text()
    listed.write_text("cup\nhound\ncar\n")
    with pytest.raises(UserError, match=r"classes\.txt"):
        ClassesPage(results)
    listed.write_text(proposed)
    ClassesPage(results).change(DROP)
    assert actions(results) == ["drop"]


def test_a_dataset_with_classes_of_its_own_has_no_page(tmp_path):
    with pytest.raises(UserError, match=r"discovery\.json"):
        ClassesPage(tmp_path)
