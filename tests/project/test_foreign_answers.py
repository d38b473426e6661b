"""Damaged and twisted answers, plans, actions and replies: read, or one sentence."""

import contextlib
import functools
import json
import math
import os
import tempfile
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image
from support.captioning import SETTINGS, changed
from support.fuzz import check, damaged, fuzzed, twisted
from support.servers import ChatServer, DecisionServer, serving

from latteclip.audit.score import read_plan
from latteclip.captions import answers
from latteclip.captions.engine import scores_of
from latteclip.captions.questions import Choices, Request
from latteclip.captions.score_classes import letters_of, letters_prompt
from latteclip.core import tables
from latteclip.core.answers import Answer, AnswerFile
from latteclip.discover.proposal import ProposalMetadata, read_actions, replay
from latteclip.labels.label_inputs import answered_rows

CLASSNAMES = ["dots", "lines", "none"]
IDS = ["a.png", "b/é.png", "b/c.png"]
IMAGES = pa.table(
    {
        "image_id": pa.chunked_array([IDS]),
        "checksum": pa.chunked_array([[bytes([n] * 16) for n in range(3)]], pa.binary(16)),
        "split": pa.chunked_array([["train", "test", "test"]]),
    }
)


def written(content, read, name="file"):
    """Read a file of some bytes by a function of its path."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "test", name)
        path.parent.mkdir()
        path.write_bytes(content)
        return check(lambda: read(path))


def spoilt(values):
    """Strategy: JSON of values, as bytes, damaged or twisted."""
    text = json.dumps(values)
    return damaged(text.encode()) | twisted(text).map(str.encode)


GIVEN = [
    Answer(IDS[0], "class", "dots", phase="teach", content="00" * 16),
    Answer(IDS[1], "none", offered=("dots", "lines", "none")),
    Answer(IDS[2], "unsure", phase="check", content="02" * 16),
]
SAVED = AnswerFile(Path(), IMAGES, CLASSNAMES).document(GIVEN).as_json()


def read_answers(path):
    """Answers as the labels take them, after one more is saved."""
    file = AnswerFile(path, IMAGES, CLASSNAMES)
    found = answered_rows(file.read().answers, IMAGES, CLASSNAMES, len(IDS))
    assert len(found.rows) == len(found.shares) <= len(IDS)
    file.update({IDS[0]: Answer(IDS[0], "class", "lines")})
    assert file.read().answers[IDS[0]].classname == "lines"


@fuzzed(content=spoilt(SAVED))
def test_damaged_answers_are_read_or_refused(content):
    written(content, read_answers)


def parquet(**columns):
    """The bytes of a table with the schema of plans."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, tables.PLAN), buffer)
    return buffer.getvalue().to_pybytes()


ROWS = {
    "image_id": IDS[1:],
    "checksum": [bytes([n] * 16) for n in (1, 2)],
    "stratum": [0, 1],
}
NAMES = st.lists(st.none() | st.sampled_from(IDS), min_size=3, max_size=3)
CHECKSUMS = st.lists(
    st.none() | st.binary(min_size=16, max_size=16), min_size=3, max_size=3
)
STRATA = st.lists(st.none() | st.integers(-9, 9), min_size=3, max_size=3)
PLANS = st.builds(parquet, image_id=NAMES, checksum=CHECKSUMS, stratum=STRATA)


@fuzzed(content=damaged(parquet(**ROWS)) | PLANS)
def test_a_damaged_plan_is_read_or_refused(content):
    plan = written(content, lambda path: read_plan(path, IMAGES, CLASSNAMES))
    assert plan is None or len(plan.strata) == len(plan.file.images) <= 3


def test_a_plan_whose_texts_are_no_utf_8_is_refused():
    content = parquet(**ROWS)
    other = content.replace(b"c.png", b"\xff.png")
    assert other != content
    assert written(other, lambda path: read_plan(path, IMAGES, CLASSNAMES)) is None


ABOUT = ProposalMetadata(
    **{
        name: {"digest": "abc", "names": [["cup", "mug"], ["dog"], ["car"]]}.get(name)
        for name in ProposalMetadata.__dataclass_fields__
    }
)
ACTIONS = [
    {"do": "rename", "of": 0, "other": -1, "name": "bowl"},
    {"do": "merge", "of": 0, "other": 1, "name": ""},
]


@fuzzed(content=spoilt({"proposal": "abc", "actions": ACTIONS}))
def test_damaged_actions_are_read_or_refused(content):
    names = written(content, lambda path: replay(ABOUT, read_actions(path, ABOUT))[0])
    assert names is None or all(name.strip() for name in names.values())


OPTIONS = ("banded", "dotted")
QUESTION = json.dumps({"instructions": "?", "criteria": dict.fromkeys(OPTIONS)})
LETTERS = (letters_prompt(OPTIONS), letters_prompt(OPTIONS[::-1]))
CHOICES = {
    "caption": None,
    "letters": Choices(letters_of(len(OPTIONS)), LETTERS, by_letters=True),
    "decision": Choices(OPTIONS, (QUESTION,)),
}
MESSAGE = {"role": "assistant", "content": "A cup.", "refusal": None}
TOKENS = [{"token": token, "logprob": -1.5, "bytes": None} for token in "ABC"]
CHOICE = {
    "index": 0,
    "message": MESSAGE,
    "finish_reason": "stop",
    "logprobs": {"content": [{**TOKENS[0], "top_logprobs": TOKENS}]},
}
CHAT = {
    **{"id": "x", "object": "chat.completion", "created": 0, "model": "tiny"},
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
DECISION = {
    "model": "decider",
    "answers": {
        "order_0": {
            **{"type": "choice", "choice": "banded", "confidence": 0.5},
            "probabilities": {"banded": 0.75, "dotted": 0.25},
        }
    },
    "usage": {"input_tokens": 9, "output_tokens": 0},
}
STATUSES = st.sampled_from([200] * 9 + [201, 204, 302, 400, 401, 429, 500])


@functools.cache
def engine(kind):
    """An engine and its server, which live as long as the tests."""
    service = contextlib.ExitStack().enter_context(serving(kind))
    address = {f"{kind.engine.upper()}_BASE_URL": service.url}
    settings = changed(SETTINGS, engine=kind.engine, model=kind.model)
    with (
        mock.patch.dict(os.environ, address),
        mock.patch("latteclip.captions.engines.openai.RETRIES", 0),
    ):
        return answers.start(settings, 1), service


def ask(kind, choices, status, content):
    """Check the answer to a request to which a server replies so."""
    asking, service = engine(kind)
    service.fail = lambda *_: (status, {}, content)
    request = Request(0, [Image.new("RGB", (4, 4))], "What?", choices)
    found = check(lambda: list(asking.answer([request])))
    if found is None:
        return
    [(_, answer)] = found
    with tempfile.TemporaryDirectory() as place, answers.AnswerCache(place) as cache:
        cache.add("digest", answer)
        cache.commit()
        assert cache.get("digest").text == answer.text
    if answer.error is not None:
        assert len(answer.error.splitlines()) == 1 and len(answer.error) < 1000
    elif choices:
        rows = scores_of(answer)
        assert not any(math.isnan(value) for row in rows for value in row)
        assert {len(row) for row in rows} == {len(OPTIONS)}


@fuzzed(
    content=spoilt(CHAT), status=STATUSES, asked=st.sampled_from(["caption", "letters"])
)
def test_a_damaged_reply_of_chat_completions_is_an_answer_or_an_error(
    content, status, asked
):
    ask(ChatServer, CHOICES[asked], status, content)


@fuzzed(content=spoilt(DECISION), status=STATUSES)
def test_a_damaged_reply_of_a_decision_model_is_an_answer_or_an_error(content, status):
    ask(DecisionServer, CHOICES["decision"], status, content)
