import gzip
import json

import numpy as np
import pytest
from PIL import Image
from support.captioning import SETTINGS as BASE
from support.chat_server import MODEL, describe, serving

from latteclip.captions import guarded_client
from latteclip.captions.engines.openai import OpenaiCaptioner
from latteclip.captions.pictures import data_url
from latteclip.captions.requests import Request
from latteclip.core.errors import UserError

SETTINGS = {**vars(BASE), "engine": "openai", "model": MODEL, "concurrency": 4, "retries": 2}


def picture(number):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))


def requests(n):
    return [Request(number, [data_url(picture(number))], "What?") for number in range(n)]


def ask(n=1, **changes):
    captioner = OpenaiCaptioner(type(BASE)(**{**SETTINGS, **changes}))
    return {request.key: answer for request, answer in captioner.answer(requests(n))}


def test_pictures_and_prompt_reach_the_server_and_answers_come_back(server):
    answers = ask(9)
    assert sorted(answers) == list(range(9))
    for number, answer in answers.items():
        assert answer.text == f"What? {describe(picture(number))}"
        assert (answer.finish_reason, answer.n_tokens, answer.error) == ("stop", 4, None)
    body = server.requests[0]["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0, 9)


def test_several_pictures_go_in_one_message(server):
    captioner = OpenaiCaptioner(type(BASE)(**SETTINGS))
    pictures = [picture(number) for number in (3, 4)]
    [(_, answer)] = captioner.answer([Request(0, list(map(data_url, pictures)), "Both?")])
    assert answer.text == "Both? " + "/".join(map(describe, pictures))


def test_so_many_requests_are_on_their_way_and_no_more(server):
    server.pause = 0.05
    ask(20)
    assert server.most_active == 4


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_or_failing_server_is_asked_again(server, status):
    server.fail = lambda number, body: (status, {"retry-after-ms": 1}) if number < 2 else None
    [answer] = ask().values()
    assert answer.error is None
    assert len(server.requests) == 3


def test_retry_after_is_honoured(server):
    server.fail = lambda number, body: (429, {"Retry-After": 1}) if number == 0 else None
    ask()
    first, second = (request["time"] for request in server.requests)
    assert second - first >= 1


def test_an_error_of_one_request_is_its_own(server):
    bad = requests(5)[3].pictures[0]

    def fail(number, body):
        return (400, {}) if body["messages"][0]["content"][0]["image_url"]["url"] == bad else None

    server.fail = fail
    answers = ask(5)
    assert answers[3].error.startswith("HTTP 400: ")
    assert answers[3].finish_reason == "error"
    assert all(answers[number].error is None for number in (0, 1, 2, 4))
    assert len(server.requests) == 5  # a bad request is not repeated


def test_a_server_that_keeps_failing_is_given_up_for_that_request(server):
    server.fail = lambda number, body: (503, {"retry-after-ms": 1})
    [answer] = ask().values()
    assert answer.error.startswith("HTTP 503")
    assert len(server.requests) == 3


def test_a_server_that_does_not_answer_in_time_is_an_error_of_the_request(server):
    server.pause = 1
    [answer] = ask(timeout=0.1, retries=0).values()
    assert "timed out" in answer.error.lower()


@pytest.mark.parametrize("status", [401, 404])
def test_what_no_request_will_get_past_ends_the_run(server, status):
    server.fail = lambda number, body: (status, {})
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        ask()


def test_a_missing_address_is_one_sentence(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ask()


def test_an_unreachable_server_is_one_sentence(monkeypatch):
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with pytest.raises(UserError, match=server.url):
        ask(retries=0)


def completion(**changes):
    """The bytes of a whole reply, some of its parts changed: of the choice, or of all."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "a dot"}}
    choice |= {"finish_reason": "stop"}
    choice |= {key: changes.pop(key) for key in set(changes) & {"message", "finish_reason"}}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return json.dumps({"id": "x", "choices": [choice], "usage": usage, **changes}).encode()


def said(content):
    return completion(message={"role": "assistant", "content": content})


# Replies that are no answer.
MALFORMED = {
    "no JSON": b"<html>proxy error</html>",
    "half of it": said("a dot")[:-9],
    "depth": b"[" * 100_000,
    "a list": b"[]",
    "no choice": completion(choices=[]),
    "message null": completion(message=None),
    "too many tokens": completion(usage={"completion_tokens": 10**12}),
    "reason a number": completion(finish_reason=7),
    "content a list": said([{"text": "a"}]),
    "half a character": said("a \ud800"),
    "too large": said("x" * guarded_client.LONGEST),
    "packed": gzip.compress(said("a")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_reply_that_is_no_answer_is_a_failure_of_its_request_alone(server, name):
    content = MALFORMED[name]
    headers = {"Content-Encoding": "gzip"} if name == "packed" else {}
    server.fail = lambda number, body: (200, headers, content) if number == 1 else None
    answers = ask(4, concurrency=1, retries=0)
    assert [answer.error is None for answer in answers.values()] == [True, False, True, True]
    assert answers[1].finish_reason == "error"
    assert len(answers[1].error) < 400


def test_a_reply_that_is_no_answer_is_asked_for_again(server):
    server.fail = lambda number, body: (200, {}, b"[]") if number < 1 else None
    [answer] = ask(retries=1).values()
    assert answer.text == f"What? {describe(picture(0))}"
    assert len(server.requests) == 2


def test_a_reply_that_drips_is_given_up(server):
    captioner = OpenaiCaptioner(type(BASE)(**{**SETTINGS, "timeout": 0.3, "retries": 0}))
    server.drip = 0.1
    [(_, answer)] = captioner.answer(requests(1))
    assert "timed out" in answer.error


@pytest.mark.parametrize(
    "models",
    [
        *(b"no JSON", b'{"data": ["x", 3, {"id": []}]}'),
        b'{"data": [{"id": "tiny", "owned_by": 5}]}',
    ],
    ids=lambda models: models[:20],
)
def test_whatever_the_list_of_models_is_captions_are_asked_for(server, models):
    server.models = models
    captioner = OpenaiCaptioner(type(BASE)(**{**SETTINGS, "retries": 0}))
    assert captioner.version == "openai server"
    [(_, answer)] = captioner.answer(requests(1))
    assert answer.error is None


@pytest.mark.parametrize("key", ["abc\n", "schl\u00fcssel"], ids=ascii)
def test_a_key_that_cannot_be_sent_is_one_sentence_without_it(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as error:
        ask()
    assert key not in str(error.value)
    assert server.requests == []


@pytest.mark.parametrize("url", ["host:8000", "http://"])
def test_an_address_that_is_none_is_one_sentence(monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ask()


def test_no_picture_goes_where_the_server_sends_it_on_to(server):
    with serving() as other:
        server.fail = lambda number, body: (307, {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(UserError, match="address"):
            ask()
        assert other.requests == []
