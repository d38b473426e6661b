"""What a server that speaks OpenAI's chat completions replies, read with distrust."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from latteclip.captions import kept
from latteclip.captions.answers import Answer
from latteclip.captions.scores import is_log_probability
from latteclip.core.settings import WORDS
from latteclip.core.terminal import holds_secret, one_line

T = TypeVar("T")
LONGEST_OWNER = 64  # characters of who serves a model


class BadReplyError(ValueError):
    """A reply that is no answer: says why, of the answer as "it"."""


@dataclass(frozen=True)
class Place:
    """What is said of the first token of an answer."""

    token: str
    likely: tuple[tuple[str, float], ...]  # tokens and their log-probabilities; at least one


@dataclass(frozen=True)
class Reply:
    """A checked reply."""

    answer: Answer
    first: Place | None  # None where the server tells no log-probabilities


def read_reply(content: bytes) -> Reply:
    """The reply to a request for one completion.

    Raises:
        BadReplyError: it is not JSON, or a part of it is of another kind than it must be.
    """
    reply = _of(dict, _json(content), "it")
    choices = _of(list, reply.get("choices"), "choices")
    if not choices:
        raise BadReplyError("it holds no choice")
    choice = _of(dict, choices[0], "choices[0]")
    message = _of(dict, choice.get("message"), "message")
    usage = _of(dict, reply.get("usage") or {}, "usage")
    text = "" if message.get("content") is None else message["content"]
    reason = "unknown" if choice.get("finish_reason") is None else choice["finish_reason"]
    n_tokens, n_read = usage.get("completion_tokens"), usage.get("prompt_tokens")
    fault = kept.fault_of_answer(text, reason, n_tokens) or kept.fault_of_count(n_read)
    if fault is not None:
        raise BadReplyError(fault)
    first = _first(choice)
    if holds_secret("\n".join([text, reason, *_words(first)])):
        raise BadReplyError("it repeats a secret, such as the API key")
    return Reply(Answer(text, reason, n_tokens, n_read=n_read), first)


def owner_of(content: bytes, model: str) -> str | None:
    """Who serves a model, from the list of models; None where the list does not say."""
    try:
        models = _of(list, _of(dict, _json(content), "it").get("data"), "data")
    except BadReplyError:
        return None
    owners = {
        str(each.get("id")): each.get("owned_by") for each in models if isinstance(each, dict)
    }
    owner = owners.get(model)
    return one_line(owner, LONGEST_OWNER) if isinstance(owner, str) else None


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise BadReplyError("it is not valid JSON") from None


def _of(kind: type[T], value: Any, name: str) -> T:
    """The value, if it is of the kind that it must be."""
    if isinstance(value, kind):
        return value
    raise BadReplyError(f"{name} is {WORDS[type(value)]}, not {WORDS[kind]}")


def _first(choice: Mapping[str, Any]) -> Place | None:
    """What a choice says of its first token."""
    content = _of(dict, choice.get("logprobs") or {}, "logprobs").get("content") or []
    places = _of(list, content, "logprobs.content")
    if not places:
        return None
    place = _of(dict, places[0], "logprobs.content[0]")
    named = _of(list, place.get("top_logprobs") or [], "top_logprobs")
    if not named:
        return None
    return Place(_token(place.get("token")), tuple(map(_likely, named)))


def _likely(named: Any) -> tuple[str, float]:
    """A token with its log-probability."""
    each = _of(dict, named, "top_logprobs[]")
    value: Any = each.get("logprob")
    if not is_log_probability(value):
        raise BadReplyError(f"the logprob of a token is {one_line(value, 40)}")
    return _token(each.get("token")), float(value)


def _token(value: Any) -> str:
    token = _of(str, value, "token")
    if len(token) > kept.CHARACTERS_PER_TOKEN or not kept.can_be_written(token):
        raise BadReplyError("a token of its logprobs is not a text")
    return token


def _words(first: Place | None) -> list[str]:
    return [] if first is None else [first.token, *(token for token, _ in first.likely)]
