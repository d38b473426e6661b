import gzip
import json
import re

import numpy as np
import pytest
from PIL import Image
from support.captioning import SETTINGS as BASE
from support.chat_server import MODEL, describe, serving

from latteclip.captions import guarded_client
from latteclip.captions.engines.openai import OpenaiCaptioner
from latteclip.captions.pictures import data_url
from latteclip.captions.request import Request
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


def test_a_cut_answer_says_so(server):
    [answer] = ask(max_new_tokens=2).values()
    assert (answer.finish_reason, answer.n_tokens) == ("length", 2)


def test_several_pictures_go_in_one_message(server):
    captioner = OpenaiCaptioner(type(BASE)(**SETTINGS))
    pictures = [picture(number) for number in (3, 4)]
    [(_, answer)] = captioner.answer([Request(0, list(map(data_url, pictures)), "Both?")])
    assert answer.text == "Both? " + "/".join(map(describe, pictures))


def test_so_many_requests_are_on_their_way_and_no_more(server):
    server.pause = 0.05
    ask(20)
    assert server.most_active == 4


def test_requests_are_taken_as_there_is_room(server):
    taken = []

    def source():
        for request in requests(30):
            taken.append(request.key)
            yield request

    answers = OpenaiCaptioner(type(BASE)(**SETTINGS)).answer(source())
    next(answers)
    assert len(taken) <= 8
    answers.close()


def test_the_key_is_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "abc")
    ask()
    assert server.requests[0]["headers"]["authorization"] == "Bearer abc"


@pytest.mark.parametrize("status", [429, 500, 503, 408])
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


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_will_get_past_ends_the_run(server, status):
    server.fail = lambda number, body: (status, {})
    with pytest.raises(UserError, match=r"refuses to answer .* OPENAI_API_KEY"):
        ask()


def test_a_missing_address_is_one_sentence(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="export OPENAI_BASE_URL="):
        ask()


def test_an_unreachable_server_is_one_sentence(monkeypatch):
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with pytest.raises(UserError, match=f"The server at {server.url} .* does not answer"):
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


# Each reply, and what is said of it.
MALFORMED = {
    "nothing": (b"", "it is not valid JSON"),
    "no JSON": (b"<html>proxy error</html>", "it is not valid JSON"),
    "half of it": (said("a dot")[:-9], "it is not valid JSON"),
    "no UTF-8": (b'{"choices": "\xff"}', "it is not valid JSON"),
    "depth": (b"[" * 100_000, "it is not valid JSON"),
    "a list": (b"[]", "it is a list, not an object"),
    "null": (b"null", "it is null, not an object"),
    "a string": (b'"yes"', "it is a string, not an object"),
    "no choices": (b"{}", "choices is null, not a list"),
    "no choice": (completion(choices=[]), "it holds no choice"),
    "a text as choice": (completion(choices=["x"]), r"choices\[0\] is a string"),
    "message null": (completion(message=None), "message is null, not an object"),
    "usage text": (completion(usage="2 tokens"), "usage is a string, not an object"),
    "too many tokens": (completion(usage={"completion_tokens": 10**12}), "its number of tokens"),
    "tokens below 0": (completion(usage={"completion_tokens": -1}), "its number of tokens is -1"),
    "half a token": (completion(usage={"completion_tokens": 1.5}), "its number of tokens is a num"),
    "reason a number": (completion(finish_reason=7), "its finish reason is 7"),
    "reason an escape": (completion(finish_reason="\x1b[2J"), r"its finish reason is '\\x1b"),
    "content a number": (said(3), "its text is 3, not a string"),
    "content a list": (said([{"text": "a"}]), "its text is a list, not a string"),
    "half a character": (said("a \ud800"), "half a character"),
    "too large": (said("x" * guarded_client.LONGEST), "larger than"),
    "packed": (gzip.compress(said("a")), "it is not valid JSON"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_reply_that_is_no_answer_is_a_failure_of_its_request_alone(server, name):
    content, complaint = MALFORMED[name]
    headers = {"Content-Encoding": "gzip"} if name == "packed" else {}
    server.fail = lambda number, body: (200, headers, content) if number == 1 else None
    answers = ask(4, concurrency=1, retries=0)
    assert [answer.error is None for answer in answers.values()] == [True, False, True, True]
    assert answers[1].finish_reason == "error"
    assert len(answers[1].error) < 400
    assert re.search(complaint, answers[1].error)


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


def test_a_large_reply_to_a_failure_is_not_read_to_its_end(server):
    server.fail = lambda number, body: (500, {}, b"x" * 2 * guarded_client.LONGEST)
    [answer] = ask(retries=0).values()
    assert "larger than" in answer.error


@pytest.mark.parametrize(
    "models",
    [
        *(b"no JSON", b"[]", b"null", b'{"data": {}}', b'{"data": ["x", 3, {"id": []}]}'),
        *(b'{"data": [{"id": "tiny", "owned_by": 5}]}', b"[" * 100_000),
        b'"' + b"x" * guarded_client.LONGEST + b'"',
    ],
    ids=lambda models: models[:20],
)
def test_whatever_the_list_of_models_is_captions_are_asked_for(server, models):
    server.models = models
    captioner = OpenaiCaptioner(type(BASE)(**{**SETTINGS, "retries": 0}))
    assert captioner.version == "openai server"
    [(_, answer)] = captioner.answer(requests(1))
    assert answer.error is None


def test_the_owner_of_a_model_is_told_in_a_few_plain_characters(server):
    owner = "\x1b]0;x\x07" + "y" * 1000
    server.models = json.dumps({"data": [{"id": MODEL, "owned_by": owner}]}).encode()
    version = OpenaiCaptioner(type(BASE)(**SETTINGS)).version
    assert version.startswith("openai server of ")
    assert version.isprintable()
    assert len(version) < 100


@pytest.mark.parametrize("key", ["abc\n", "ab cd", " abc", "schl\u00fcssel", "a\x7f"], ids=ascii)
def test_a_key_that_cannot_be_sent_is_one_sentence_without_it(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds a blank") as error:
        ask()
    assert key not in str(error.value)
    assert server.requests == []


@pytest.mark.parametrize("url", ["host:8000", "ftp://host/v1", "http://", "http://h:x/v1", "x y"])
def test_an_address_that_is_none_is_one_sentence(monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match=r"OPENAI_BASE_URL is .* not an address such as"):
        ask()


def test_no_picture_goes_where_the_server_sends_it_on_to(server):
    with serving() as other:
        server.fail = lambda number, body: (307, {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(UserError, match="sends requests on to another address"):
            ask()
        assert other.requests == []


def test_what_refuses_shows_no_key_and_no_password(server, monkeypatch):
    key = "sk-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", "//me:pass-word-1@"))

    def fail(number, body):
        return 401, {}, json.dumps(server.requests[number]["headers"]).encode()

    server.fail = fail
    with pytest.raises(UserError, match="refuses to answer") as error:
        ask()
    assert key not in str(error.value)
    assert "pass-word-1" not in str(error.value)


def test_an_answer_that_repeats_the_key_is_none(server, monkeypatch):
    key = "sk-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.fail = lambda number, body: (200, {}, said(f"your key is {key}"))
    [answer] = ask(retries=0).values()
    assert "repeats a secret" in answer.error
    assert key not in answer.error
