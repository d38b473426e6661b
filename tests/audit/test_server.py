"""The requests that the server of the page answers."""

import errno
import http.client
import json
import os

import pytest
from support.audits import made_audit, running

from latteclip.audit.audit import AuditSession
from latteclip.audit.server import MAX_BODY, PageServer
from latteclip.core import answers as answers_
from latteclip.core.answers import Answer


@pytest.fixture
def server(tmp_path):
    results = made_audit(tmp_path / "made")
    with running(PageServer(AuditSession(results.folder, 20))) as server:
        yield server


def ask(server, what="", *, method="GET", body=b"", token=None, **headers):
    """The status, headers and body of the reply to one request; a header None is left out."""
    host = f"127.0.0.1:{server.server_port}"
    sent = {"Host": host}
    if method == "PUT":
        sent |= {"Origin": f"http://{host}", "Content-Type": "application/json"}
        sent["Content-Length"] = str(len(body))
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.putrequest(
        method, f"/{server.token if token is None else token}/{what}", skip_host=True
    )
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return found


def document(server, n=1, kind="none"):
    session = server.page
    ids = [session.questions[number].image_id for number in range(n)]
    answers = [Answer(one, kind) for one in ids]
    return json.dumps(session.file.document(answers).as_json()).encode()


def put(server, body=None, **headers):
    body = document(server) if body is None else body
    return ask(server, "changes", method="PUT", body=body, **headers)


def test_the_page_and_its_pictures_are_served_to_this_machine_with_strict_headers(server):
    assert server.server_address[0] == "127.0.0.1" and len(server.token) >= 32
    for what, kind in (("", "text/html"), ("image/0", "image/webp")):
        status, headers, body = ask(server, what)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert not any(name.startswith("Access-Control") for name in headers)
        assert body


def test_a_page_sends_what_it_changed_and_earlier_answers_of_other_pages_stay(server):
    status, _, body = put(server, document(server, 3))
    assert (status, len(server.page.answers())) == (200, 3)
    assert json.loads(body)["upcoming"][0]["image"] == server.page.questions[3].image_id
    first, _, third = (server.page.questions[number].image_id for number in range(3))
    changed = json.loads(document(server, 1, "unsure")) | {"removed": [third, "gone"]}
    status, _, body = put(server, json.dumps(changed).encode())
    reply = json.loads(body)
    assert (status, reply["answered"], reply["is_late"]) == (200, 2, True)
    assert server.page.answers()[first].kind == "none"


def test_with_30000_answers_one_more_is_saved(server):
    """All of them would be more than a request may have."""
    saved = server.page.file
    many = [Answer(f"{n}.png", "none", content="0" * 32) for n in range(30_000)]
    every = saved.document(many).as_json()
    assert len(json.dumps(every)) > MAX_BODY
    server.page.file.path.write_text(json.dumps(every))
    status, _, body = put(server)
    assert status == 200 and len(body) < 10_000
    assert len(server.page.answers()) == 1
    assert len(ask(server)[2]) < 200_000


def test_a_full_disk_is_reported_and_with_room_the_audit_goes_on(server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(answers_, "write_json", full)
        status, _, body = put(server)
    assert status == 500 and "No space" in json.loads(body)["error"]
    assert put(server)[0] == 200


FOREIGN = [
    {"token": ""},
    {"token": "x" * 32},
    {"Host": "evil.example"},  # somebody else's name that points here
    {"Host": None},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
]


@pytest.mark.parametrize("request_", FOREIGN, ids=str)
def test_without_the_token_or_from_elsewhere_nothing_is_answered(server, request_):
    assert ask(server, **request_)[0] in (403, 404)
    assert put(server, **request_)[0] in (403, 404)
    for form in ({"Origin": None}, {"Content_Type": "text/plain"}):  # of another page
        assert put(server, **form)[0] in (403, 415)
    assert not server.page.file.path.exists()


@pytest.mark.parametrize(
    "what", ["../../../etc/passwd", "-1", "20", "9" * 5000, "../answers.json"]
)
def test_only_the_pictures_of_questions_are_served(server, what):
    status, _, body = ask(server, f"image/{what}")
    assert status in (400, 404, 414)
    assert b"root:" not in body


def test_a_gigabyte_is_refused_unread(server):
    for length in (str(10**9), str(MAX_BODY + 1), "-1", "x", None):
        assert put(server, b"", Content_Length=length)[0] in (411, 413)
    assert put(server, b"", Transfer_Encoding="chunked", Content_Length=None)[0] == 411


def test_a_second_page_is_told_that_an_image_has_the_same_answer(server):
    replies = [json.loads(put(server, document(server))[2]) for _ in range(2)]
    assert [reply["is_late"] for reply in replies] == [False, True]
