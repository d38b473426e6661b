import json

import pytest

from latteclip.audit import answers
from latteclip.audit.answers import Answer, Answers, Asked, read_exported
from latteclip.core.errors import UserError

IDS = [f"images/{i}.png" for i in range(6)]
ASKED = Asked("0123456789abcdef", "made", frozenset(IDS), ("none", "dots", "\u202edots"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit" / "answers.jsonl"


def three(path):
    """A file of three answers."""
    answers = Answers(path, ASKED)
    answers.add([Answer(IDS[0], "class", "dots"), Answer(IDS[1], "none")])
    answers.add([Answer(IDS[2], "class", "none")])
    return answers


def test_answers_are_read_back(path):
    written = three(path).standing()
    assert Answers(path, ASKED).standing() == written
    assert [one.kind for one in written.values()] == ["class", "none", "class"]


def test_an_answer_is_taken_back_and_given_anew(path):
    answers = three(path)
    answers.undo()
    answers.undo()
    assert list(answers.standing()) == IDS[:1]
    answers.add([Answer(IDS[1], "unsure")])
    for one in (answers, Answers(path, ASKED)):
        assert [a.kind for a in one.standing().values()] == ["class", "unsure"]
    answers.undo()
    answers.undo()
    answers.undo()  # nothing is left
    assert answers.standing() == {}


@pytest.mark.parametrize("cut", [1, 20, 39])
def test_a_line_that_was_cut_off_is_healed(path, cut):
    three(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    answers = Answers(path, ASKED)
    assert list(answers.standing()) == IDS[:2] if cut > 1 else IDS[:3]
    answers.add([Answer(IDS[3], "none")])
    assert list(Answers(path, ASKED).standing()) == [*(IDS[:2] if cut > 1 else IDS[:3]), IDS[3]]


def test_to_read_while_a_line_is_being_written_changes_nothing(path):
    three(path)
    half = path.read_bytes()[:-7]
    path.write_bytes(half)
    assert list(Answers(path, ASKED).standing()) == IDS[:2]
    assert path.read_bytes() == half


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"image": "/etc/passwd", "answer": "none"}',
        '{"image": "images/1.png", "answer": ["none"]}',
        '{"image": "images/1.png", "answer": "class", "class": ["dots"]}',
    ],
    ids=lambda text: text[:40],
)
def test_a_line_that_somebody_broke_is_named(path, line):
    three(path)
    kept = path.read_text() + line + "\n"
    path.write_text(kept)
    with pytest.raises(UserError, match="line 5"):
        Answers(path, ASKED)
    assert path.read_text() == kept


def test_answers_of_another_plan_are_refused(path):
    three(path)
    with pytest.raises(UserError, match=r"answers\.jsonl"):
        Answers(path, Asked("another", "made", ASKED.image_ids, ASKED.classnames))


def exported(tmp_path, **values):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({**ASKED.header(), "answers": [], **values}))
    return str(path)


def test_exported_answers_are_read(tmp_path):
    said = [
        {"image": IDS[1], "answer": "none"},
        {"image": IDS[0], "answer": "class", "class": "dots"},
    ]
    assert read_exported(exported(tmp_path, answers=said), ASKED) == [
        Answer(IDS[1], "none"),
        Answer(IDS[0], "class", "dots"),
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"plan": {"a": 1}},
        {"answers": [{"image": "other.png", "answer": "none"}]},
        {"answers": [{"image": IDS[0], "answer": "none"}] * 2},
        {"answers": [3]},
    ],
    ids=str,
)
def test_an_export_that_does_not_fit_is_refused(tmp_path, values):
    with pytest.raises(UserError, match=r"answers\.json"):
        read_exported(exported(tmp_path, **values), ASKED)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe", b"[" * 100_000], ids=str)
def test_a_file_that_is_no_export_is_refused(tmp_path, content):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"answers\.json"):
        read_exported(str(path), ASKED)


def test_a_file_without_end_is_not_read_to_its_end(path, monkeypatch):
    monkeypatch.setattr(answers, "LONGEST", 1000)
    path.parent.mkdir()
    path.symlink_to("/dev/zero")
    for read in (lambda: read_exported("/dev/zero", ASKED), lambda: Answers(path, ASKED)):
        with pytest.raises(UserError, match=r"zero|answers"):
            read()
