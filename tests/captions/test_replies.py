import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latteclip.captions import kept
from latteclip.captions.replies import BadReplyError, Place, read_reply

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
        {"content": "text"},
        {"content": [{**PLACE, "top_logprobs": [{"token": "B", "logprob": "-1"}]}]},
        {"content": [{**PLACE, "top_logprobs": [{"token": "B", "logprob": float("nan")}]}]},
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
