"""Who may ask the audit's server what."""

import errno
import http.client
import json
import os
import threading
from pathlib import Path

import pytest
from support.audits import made_audit

from latteclip.audit.server import MAX_BODY, AuditServer
from latteclip.audit.session import Session
from latteclip.core.errors import UserError


@pytest.fixture
def server(tmp_path):
    results = made_audit(tmp_path / "made")
    with AuditServer(Session(results.folder, None, 20)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, what="state", *, method="GET", body=b"", token=None, **headers):
    """The status, headers and body of the reply to one request; a header None is left out."""
    own = f"127.0.0.1:{server.server_port}"
    said = {"Host": own}
    if method == "POST":
        said |= {"Origin": f"http://{own}", "Content-Type": "application/json"}
        said["Content-Length"] = str(len(body))
    said |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(own, timeout=20)
    connection.putrequest(
        method, f"/{server.token if token is None else token}/{what}", skip_host=True
    )
    for name, value in said.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return found


def answer(number=0, said="none", **more):
    return json.dumps({"number": number, "answer": said, **more}).encode()


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32


def test_the_page_and_its_pictures_are_served_with_strict_headers(server):
    for what, kind in (("", "text/html"), ("image/0", "image/webp"), ("state", "application/json")):
        status, headers, body = ask(server, what)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert not any(name.startswith("Access-Control") for name in headers)
        assert body


def test_an_answer_is_on_the_disk_before_the_next_image_is_shown(server):
    status, _, body = ask(server, "answer", method="POST", body=answer())
    assert (status, json.loads(body)["number"]) == (200, 1)
    lines = server.session.answers.path.read_text().splitlines()
    assert json.loads(lines[1])["answer"] == "none"


def test_a_full_disk_is_told_and_with_room_the_audit_goes_on(server, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, body = ask(server, "answer", method="POST", body=answer())
    assert status == 507 and json.loads(body)["error"]
    status, _, body = ask(server, "answer", method="POST", body=answer())
    assert (status, json.loads(body)["answered"]) == (200, 1)
    assert len(server.session.answers.path.read_text().splitlines()) == 2


@pytest.mark.parametrize("token", ["", "x" * 32])
def test_without_the_token_there_is_nothing(server, token):
    assert ask(server, "state", token=token)[0] == 404
    assert ask(server, "answer", method="POST", body=answer(), token=token)[0] == 404
    assert not server.session.answers.path.exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name of somebody else that points here
        {"Host": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_other_hosts_and_origins_are_refused(server, headers):
    assert ask(server, "state", **headers)[0] == 403
    assert ask(server, "answer", method="POST", body=answer(), **headers)[0] == 403
    assert not server.session.answers.path.exists()


def test_a_form_of_another_page_cannot_answer(server):
    for headers in ({"Origin": None}, {"Content_Type": "text/plain"}):
        status = ask(server, "answer", method="POST", body=answer(), **headers)[0]
        assert status in (403, 415)
    assert not server.session.answers.path.exists()


OUTSIDE = ("../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd")


@pytest.mark.parametrize("what", [*OUTSIDE, "-1", "20", "9" * 5000, "../answers.jsonl"])
def test_only_the_pictures_that_were_drawn_are_served(server, what):
    status, _, body = ask(server, f"image/{what}")
    assert status in (400, 404, 414)
    assert b"root:" not in body


def test_a_gigabyte_is_refused_unread(server):
    for length in (str(10**9), str(MAX_BODY + 1), "-1", "x", None):
        status = ask(server, "answer", method="POST", Content_Length=length)[0]
        assert status in (411, 413)
    chunked = {"Transfer_Encoding": "chunked", "Content_Length": None}
    assert ask(server, "answer", method="POST", **chunked)[0] == 411


@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 9000, b"\xff", answer("0"), answer(0, "class", **{"class": {"a": "b"}})],
)
def test_what_is_no_answer_is_one_sentence(server, body):
    status, _, reply = ask(server, "answer", method="POST", body=body)
    assert status == 400
    assert json.loads(reply)["error"]
    assert not server.session.answers.path.exists()


def test_a_picture_that_vanished_is_one_sentence(server):
    path = server.session.question(0).path
    Path(path).write_bytes(b"")
    status, _, reply = ask(server, "image/0")
    assert (status, path in json.loads(reply)["error"]) == (400, True)


def test_a_port_that_cannot_be_used_is_one_sentence(server):
    for port in (65536, server.server_port):
        with pytest.raises(UserError, match=str(port)):
            AuditServer(server.session, port)
