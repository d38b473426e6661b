import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latteclip.captions import kept
from latteclip.captions.replies import BadReplyError, Place, owner_of, read_reply
from latteclip.core.foreign import printable

PLACE = {"token": " B", "top_logprobs": [{"token": " B", "logprob": -0.25}]}
WHOLE = {
    "choices": [
        {
            "message": {"role": "assistant", "content": "a dotted cloth"},
            "finish_reason": "stop",
            "logprobs": {"content": [PLACE]},
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def read(reply):
    return read_reply(json.dumps(reply).encode())


def test_a_whole_reply_is_read():
    reply = read(WHOLE)
    assert (reply.answer.text, reply.answer.finish_reason) == ("a dotted cloth", "stop")
    assert reply.answer.n_tokens == 4
    assert reply.first == Place(" B", ((" B", -0.25),))


def test_what_servers_leave_out_is_no_fault():
    reply = read({"choices": [{"message": {"content": None}}]})
    assert (reply.answer.text, reply.answer.finish_reason) == ("", "unknown")
    assert reply.answer.n_tokens is None
    assert reply.first is None


@pytest.mark.parametrize(
    "logprobs",
    [
        *("text", {"content": "text"}, {"content": ["text"]}, {"content": [{**PLACE, "token": 3}]}),
        {"content": [{**PLACE, "top_logprobs": [{"token": "B"}]}]},
        {"content": [{**PLACE, "top_logprobs": [{"token": "B", "logprob": "-1"}]}]},
        {"content": [{**PLACE, "top_logprobs": [{"token": "B", "logprob": 3.0}]}]},
        {"content": [{**PLACE, "top_logprobs": [{"token": "B", "logprob": float("nan")}]}]},
        {"content": [{**PLACE, "top_logprobs": [{"token": "\ud800", "logprob": -1.0}]}]},
        {"content": [{**PLACE, "token": "x" * 1000}]},
    ],
    ids=str,
)
def test_log_probabilities_of_another_kind_are_a_fault(logprobs):
    reply = json.loads(json.dumps(WHOLE))
    reply["choices"][0]["logprobs"] = logprobs
    with pytest.raises(BadReplyError):
        read(reply)


def places(value, path=()):
    """The way to every value inside a JSON value, to itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    head, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[head] = changed(copy[head], rest, new)
    return copy


def check(content):
    """A usable reply or a fault that is told; nothing else."""
    try:
        reply = read_reply(content)
    except BadReplyError as fault:
        assert str(fault)
        return
    said = reply.answer
    assert kept.fault_of_answer(said.text, said.finish_reason, said.n_tokens) is None
    assert reply.first is None or all(value <= 1e-3 for _, value in reply.first.likely)


@settings(deadline=None)
@given(st.sampled_from(sorted(places(WHOLE), key=str)), JSON)
def test_any_value_in_any_place_of_a_reply(path, value):
    check(json.dumps(changed(WHOLE, path, value)).encode())


@settings(deadline=None)
@given(st.data())
def test_any_damage_of_a_reply(data):
    content = bytearray(json.dumps(WHOLE).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    check(bytes(content))


@settings(deadline=None)
@given(JSON)
def test_any_list_of_models(models):
    for content in (models, {"data": models}, {"data": [{"id": "tiny", "owned_by": models}]}):
        owner = owner_of(json.dumps(content).encode(), "tiny")
        assert owner is None or (printable(owner) == owner and len(owner) <= 64)
