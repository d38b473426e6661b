import json
import threading

import pyarrow as pa
import pytest

from latteclip.core.errors import UserError
from latteclip.labels.answers import (
    Answer,
    AnswerSchema,
    StaleRevisionError,
    content_digest,
    labelled_rows,
    teaching_schema,
)

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
    assert SCHEMA.read(path) == ({}, "")
    revision = SCHEMA.write(path, THREE, "")
    saved, read_revision = SCHEMA.read(path)
    assert (list(saved.items()), read_revision) == (list(THREE.items()), revision)
    assert SCHEMA.read_exported(str(path)) == THREE


def test_only_the_latest_revision_is_replaced(path):
    first = SCHEMA.write(path, THREE, "")
    fewer = dict(list(THREE.items())[:2])
    second = SCHEMA.write(path, fewer, first)
    for stale in ("", first):
        with pytest.raises(StaleRevisionError):
            SCHEMA.write(path, THREE, stale)
    assert SCHEMA.read(path) == (fewer, second)


def test_of_two_that_write_at_once_one_is_refused(path):
    outcomes = []

    def write(one):
        try:
            outcomes.append(SCHEMA.write(path, {one: Answer(one, "none")}, ""))
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
        *(None, b"", b"[]", b"\xff\xfe", b"[" * 100_000),
        *(document(plan="another"), document(plan={"a": 1})),
        *(document(answers=3), document(answers=[3])),
        document(answers=[{"image": "/etc/passwd", "answer": "none"}]),
        document(answers=[{"image": IDS[0], "answer": "none"}] * 2),
        document(answers=[{"image": IDS[0], "answer": ["none"]}]),
        document(answers=[{"image": IDS[0], "answer": "perhaps"}]),
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
        SCHEMA.read_exported(str(path))


# --- answers that teach --------------------------------------------------------------------------

CLASSNAMES = ["none", "dots", "\u202edots"]


@pytest.fixture
def images(tmp_path):
    """An index of five files."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(b"content %d" % number)
    return index([path.name for path in paths], paths)


def index(ids, paths):
    return pa.table({"image_id": pa.chunked_array([ids]), "path": [str(path) for path in paths]})


def taught(image, name="dots", **more):
    kind = "class" if name else "none"
    return Answer(image, kind, name, content=more.pop("content", None), **more)


def rows_of(answers, images):
    found, gone = labelled_rows({one.key: one for one in answers}, images, CLASSNAMES)
    return found.rows.tolist(), found.shares.tolist(), found.drawn.tolist(), gone


def test_answers_become_shares_of_classes(images):
    answers = [
        taught("3.png", phase="check"),
        taught("0.png", "none", phase="teach"),
        taught("3.png", "none", repeat=True),
        taught("1.png", None),
        Answer("2.png", "unsure"),
    ]
    shares = [[1, 0, 0], [0, 0, 0], [0.5, 0.5, 0]]
    assert rows_of(answers, images) == ([0, 1, 3], shares, [False, False, True], [])


def test_answered_images_are_known_by_their_content(images):
    """They are found again under other names; images that changed or are gone are left out."""
    paths = images["path"].to_pylist()
    answers = [taught(f"{i}.png", content=content_digest(paths[i])) for i in range(4)]
    moved = index(["a.png", "b.png", "2.png", "3.png"], [paths[1], paths[4], paths[2], paths[0]])
    rows, _, _, gone = rows_of(answers, moved)
    assert (rows, gone) == ([0, 2, 3], ["3.png"])


def test_teaching_answers_are_read_back_and_other_classes_are_named(path):
    schema = teaching_schema("made", CLASSNAMES)
    first = taught("3.png", phase="check", content="00")
    answers = {one.key: one for one in (first, taught("3.png", "none", repeat=True))}
    schema.write(path, answers, "")
    assert schema.read(path)[0] == answers
    with pytest.raises(UserError, match="dots"):
        teaching_schema("made", ["none", "other"]).read(path)
