import json
import threading

import pytest

from latteclip.audit import answers
from latteclip.audit.answers import (
    Answer,
    AnswerSchema,
    StaleRevisionError,
    read_answers,
    read_exported,
    write_answers,
)
from latteclip.core.errors import UserError

IDS = [f"images/{i}.png" for i in range(6)]
SCHEMA = AnswerSchema("0123456789abcdef", "made", frozenset(IDS), ("none", "dots", "\u202edots"))
THREE = {
    IDS[1]: Answer(IDS[1], "class", "none"),
    IDS[0]: Answer(IDS[0], "none"),
    IDS[2]: Answer(IDS[2], "class", "\u202edots"),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit" / "answers.json"


def test_answers_are_read_back_in_their_order(path):
    assert read_answers(path, SCHEMA) == ({}, "")
    revision = write_answers(path, SCHEMA, THREE, "")
    saved, read_revision = read_answers(path, SCHEMA)
    assert (list(saved.items()), read_revision) == (list(THREE.items()), revision)
    assert read_exported(str(path), SCHEMA) == THREE


def test_only_the_latest_revision_is_replaced(path):
    first = write_answers(path, SCHEMA, THREE, "")
    fewer = dict(list(THREE.items())[:2])
    second = write_answers(path, SCHEMA, fewer, first)
    for stale in ("", first):
        with pytest.raises(StaleRevisionError):
            write_answers(path, SCHEMA, THREE, stale)
    assert read_answers(path, SCHEMA) == (fewer, second)


def test_of_two_that_write_at_once_one_is_refused(path):
    outcomes = []

    def write(one):
        try:
            outcomes.append(write_answers(path, SCHEMA, {one: Answer(one, "none")}, ""))
        except StaleRevisionError:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(one,)) for one in IDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in outcomes if one]) == 1


def document(**values):
    return json.dumps({**SCHEMA.document(THREE), **values}).encode()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        document(plan="another"),
        document(plan={"a": 1}),
        document(answers=3),
        document(answers=[3]),
        document(answers=[{"image": "/etc/passwd", "answer": "none"}]),
        document(answers=[{"image": IDS[0], "answer": "none"}] * 2),
        document(answers=[{"image": IDS[0], "answer": ["none"]}]),
        document(answers=[{"image": IDS[0], "answer": "class", "class": ["dots"]}]),
        document(answers=[{"image": IDS[0], "answer": "class", "class": "other"}]),
    ],
    ids=lambda content: str(content)[:60],
)
def test_a_file_that_is_not_valid_is_named(tmp_path, content):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"answers\.json"):
        read_exported(str(path), SCHEMA)


def test_an_endless_file_is_not_read_to_its_end(path, monkeypatch):
    monkeypatch.setattr(answers, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="/dev/zero"):
        read_exported("/dev/zero", SCHEMA)
