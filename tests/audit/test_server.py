"""Who may ask the audit's server what, by raw requests."""

import errno
import json
import os
import socket
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


def ask(server, what="state", *, method="GET", body=b"", token=None, more=(), **headers):
    """The status, headers and body of the reply to one request; a header None is left out."""
    own = f"127.0.0.1:{server.server_port}"
    said = {"Host": own}
    if method == "POST":
        said |= {"Origin": f"http://{own}", "Content-Type": "application/json"}
        said["Content-Length"] = str(len(body))
    said |= {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"/{server.token if token is None else token}/{what}"
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in said.items() if value is not None]
    lines += more
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        reply = b""
        while part := connection.recv(65536):
            reply += part
    head, _, content = reply.partition(b"\r\n\r\n")
    status, *named = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in named), content


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
    assert status == 507 and "disk is full" in json.loads(body)["error"]
    status, _, body = ask(server, "answer", method="POST", body=answer())
    assert (status, json.loads(body)["answered"]) == (200, 1)
    assert len(server.session.answers.path.read_text().splitlines()) == 2


def test_the_state_does_not_say_whose_a_class_is(server):
    values = json.loads(ask(server, "state")[2])
    assert set(values) == {"number", "answered", "total", "options"}


@pytest.mark.parametrize("token", ["", "x", "x" * 32, "..", "é"])
def test_without_the_token_there_is_nothing(server, token):
    assert ask(server, "state", token=token)[0] == 404
    assert ask(server, "answer", method="POST", body=answer(), token=token)[0] == 404
    assert not server.session.answers.path.exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name of somebody else that points here
        {"Host": "127.0.0.1"},
        {"Host": None},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
    ],
)
def test_other_hosts_and_origins_are_refused(server, headers):
    assert ask(server, "state", **headers)[0] == 403
    assert ask(server, "answer", method="POST", body=answer(), **headers)[0] == 403
    assert not server.session.answers.path.exists()


def test_two_hosts_are_refused(server):
    assert ask(server, more=["Host: evil.example"])[0] == 403


def test_a_form_of_another_page_cannot_answer(server):
    for headers in ({"Origin": None}, {"Content_Type": "text/plain"}, {"Content_Type": None}):
        status = ask(server, "answer", method="POST", body=answer(), **headers)[0]
        assert status in (403, 415)
    assert not server.session.answers.path.exists()


@pytest.mark.parametrize(
    "what",
    [
        "image/../../../../etc/passwd",
        "image/..%2f..%2fetc%2fpasswd",
        "image//etc/passwd",
        "image/-1",
        "image/20",
        "image/119",
        "image/0/",
        "image/٣",
        "image/" + "9" * 5000,
        "../state",
        "answers.jsonl",
    ],
)
def test_only_the_pictures_that_were_drawn_are_served(server, what):
    status, _, body = ask(server, what)
    assert status in (400, 404, 414)
    assert b"root:" not in body


def test_a_gigabyte_is_refused_unread(server):
    length = {"Content_Length": str(10**9)}
    assert ask(server, "answer", method="POST", **length)[0] == 413
    chunked = {"Transfer_Encoding": "chunked", "Content_Length": None}
    assert ask(server, "answer", method="POST", **chunked)[0] == 411
    for odd in (None, "-1", "x", "1" * 5000, str(MAX_BODY + 1)):
        assert ask(server, "answer", method="POST", Content_Length=odd)[0] in (411, 413)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 9000,
        b"\xff",
        answer("0"),
        answer(True),
        answer(0, 7),
        answer(0, "undone"),
        answer(0, "maybe"),
        answer(0, "class"),
        answer(0, "class", **{"class": "no such"}),
        answer(0, "class", **{"class": [1]}),
        answer(0, "class", **{"class": {"a": "b"}}),
    ],
)
def test_what_is_no_answer_is_one_sentence(server, body):
    status, _, reply = ask(server, "answer", method="POST", body=body)
    assert status == 400
    assert json.loads(reply)["error"]
    assert not server.session.answers.path.exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "X" * 70000])
def test_other_methods_are_refused(server, method):
    status, headers, _ = ask(server, method=method)
    assert status in (400, 414, 501)
    assert "Access-Control-Allow-Origin" not in headers


def test_an_answer_to_another_question_than_the_current_is_none(server):
    for number in (1, 5, -1, 10**9):
        status, _, reply = ask(server, "answer", method="POST", body=answer(number))
        assert (status, json.loads(reply)["number"]) == (200, 0)


def test_a_result_of_too_few_answers_is_one_sentence(server):
    status, _, reply = ask(server, "result")
    assert status == 400
    assert "give at least" in json.loads(reply)["error"]


def test_a_picture_that_vanished_is_one_sentence(server):
    path = server.session.question(0).path
    Path(path).write_bytes(b"")
    status, _, reply = ask(server, "image/0")
    assert (status, path in json.loads(reply)["error"]) == (400, True)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_one_sentence(server, port):
    with pytest.raises(UserError, match=f"Port {port} cannot be used"):
        AuditServer(server.session, port)


def test_a_port_in_use_is_one_sentence(server):
    with pytest.raises(UserError, match="cannot be used"):
        AuditServer(server.session, server.server_port)
