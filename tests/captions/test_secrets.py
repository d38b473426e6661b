"""A real run against a server whose errors repeat the request: no secret is left anywhere."""

import base64
import contextlib
import json
import sqlite3

import pyarrow.parquet as pq
import pytest
from support.captioning import SETTINGS, of_engine
from support.chat_server import MODEL
from support.sections import changed

from latteclip.cli import main

KEY = "sk-secret-0123456789"
PASSWORD = "pass-word-0123"
LOGIN = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
OPENAI = {**of_engine("openai"), "model": MODEL, "concurrency": 2, "retries": 0}


def text_of(file):
    """A file as text; a table or a database, whose pages are packed, as its rows."""
    if file.suffix == ".parquet":
        return f"{pq.read_metadata(file).metadata} {pq.read_table(file).to_pydict()}"
    if file.suffix == ".sqlite":
        with contextlib.closing(sqlite3.connect(file)) as opened:
            return "\n".join(opened.iterdump())
    return file.read_bytes().decode(errors="replace")


def left_in(folder, captured):
    """The text of all files, pictures left out, and of both streams."""
    files = [text_of(f) for f in folder.rglob("*") if f.is_file() and f.suffix != ".png"]
    return "\n".join([*files, *captured])


@pytest.mark.parametrize("status", [500, 401])
def test_the_key_of_a_decision_model_is_not_left(
    scored, decisions, monkeypatch, capfd, status
):
    monkeypatch.setenv("DECISIONS_API_KEY", KEY)

    def fail(number, body):
        said = json.dumps(decisions.requests[number]["headers"])
        return status, {}, {"error": {"message": f"{said} {KEY}"}}

    decisions.fail = fail
    settings = changed(SETTINGS, **{**OPENAI, **of_engine("decisions")})
    images, labels, embeddings = scored.inputs
    arguments = [
        *("score-classes", "--images", images, "--pseudo-labels", labels),
        *("--class-embeddings", embeddings, "--scores", '{"kind": "decisions"}'),
        *("--prompt", "", "--captioner", json.dumps(settings.model_dump())),
        *("--output", str(scored.output), "--store", str(scored.folder / "store")),
        *("--threads", "1", "--log", str(scored.folder / "logs" / "scores.log")),
    ]
    assert main.main(arguments) == 2
    assert KEY in decisions.requests[0]["headers"]["authorization"]
    left = left_in(scored.folder, capfd.readouterr())
    assert "***" in left and KEY not in left


@pytest.mark.parametrize(
    ("status", "whole", "exit_status"),
    [(500, (0, 1, 2), 0), (500, (), 2), (401, (), 2)],
)
def test_no_secret_is_left(dataset, server, monkeypatch, capfd, status, whole, exit_status):
    def fail(number, body):
        headers = json.dumps(server.requests[number]["headers"])
        content = {"error": {"message": f"{headers} {KEY} {PASSWORD} \x1b[2J"}}
        return None if number in whole else (status, {}, json.dumps(content).encode())

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", f"//me:{PASSWORD}@"))
    server.fail = fail
    settings = changed(SETTINGS, **OPENAI, max_failed=0.9 if whole else 0.0)
    folder = dataset.folder
    arguments = [
        *(
            "caption-images",
            "--images",
            dataset.images,
            "--prompt",
            "What?",
            "--threads",
            "1",
        ),
        *(
            "--captioner",
            json.dumps(settings.model_dump()),
            "--output",
            str(dataset.output),
        ),
        *("--store", str(folder / "store"), "--log", str(folder / "logs" / "caption.log")),
    ]
    assert main.main(arguments) == exit_status
    sent = server.requests[0]["headers"]["authorization"].removeprefix("Bearer ")
    assert sent in (KEY, f"Basic {LOGIN}")  # so there was something to leave
    left = left_in(folder, capfd.readouterr())
    assert "***" in left
    assert not [secret for secret in (KEY, PASSWORD, LOGIN, "\x1b") if secret in left]
