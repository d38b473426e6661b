import json
import math

import numpy as np
import pytest
from PIL import Image
from support.captioning import SETTINGS as BASE
from support.captioning import mean_colour
from support.chat_server import MODEL, serving

from latteclip.captions.answer_cache import problem
from latteclip.captions.engines.openai import OpenaiEngine
from latteclip.captions.pictures import data_url
from latteclip.captions.requests import Choices, ChoiceScores, Request
from latteclip.captions.score_classes import letters_of, letters_prompt
from latteclip.core.errors import UserError

SETTINGS = {
    **dict(BASE),
    "engine": "openai",
    "model": MODEL,
    "concurrency": 4,
    "retries": 2,
}


def picture(number):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))


def requests(n):
    return [Request(number, [data_url(picture(number))], "What?") for number in range(n)]


def engine(**changes):
    return OpenaiEngine(type(BASE)(**{**SETTINGS, **changes}))


def ask(n=1, **changes):
    return {
        request.key: answer for request, answer in engine(**changes).answer(requests(n))
    }


def test_pictures_and_prompt_reach_the_server_and_answers_come_back(server):
    server.pause = 0.05
    answers = ask(20)
    assert sorted(answers) == list(range(20))
    for number, answer in answers.items():
        assert answer.text == f"What? {mean_colour(picture(number))}"
        assert (answer.finish_reason, answer.n_tokens, answer.n_read) == ("stop", 4, 1)
        assert answer.error is None
    body = server.requests[0]["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0, 9)
    assert server.most_active == 4


# --- a server that fails -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_or_failing_server_is_asked_again(server, status):
    server.fail = lambda number, body: (
        (status, {"retry-after-ms": 1}) if number < 2 else None
    )
    assert ask()[0].error is None
    assert len(server.requests) == 3


def test_an_error_of_one_request_is_its_own(server):
    bad = requests(5)[3].pictures[0]

    def fail(number, body):
        return (
            (400, {})
            if body["messages"][0]["content"][0]["image_url"]["url"] == bad
            else None
        )

    server.fail = fail
    answers = ask(5)
    assert answers[3].error.startswith("HTTP 400: ")
    assert all(answers[number].error is None for number in (0, 1, 2, 4))
    assert len(server.requests) == 5  # a bad request is not repeated


def test_a_server_that_does_not_answer_in_time_is_an_error_of_the_request(server):
    server.pause = 1
    assert "timed out" in ask(timeout=0.1, retries=0)[0].error.lower()


@pytest.mark.parametrize("status", [401, 404])
def test_an_error_of_every_request_ends_the_run(server, status):
    server.fail = lambda number, body: (status, {})
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        ask()


def completion(**changes):
    """The bytes of a whole reply, some of its parts changed."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"content": "a dot", **changes},
    }
    return json.dumps({"id": "x", "choices": [choice]}).encode()


NONSENSE = {
    "no JSON": b"<html>proxy error</html>",
    "depth": b"[" * 100_000,
    "no choice": b'{"choices": []}',
    "content a list": completion(content=[{"text": "a"}]),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_reply_that_is_no_answer_is_a_failure_of_its_request_alone(server, name):
    server.fail = lambda number, body: (200, {}, NONSENSE[name]) if number == 1 else None
    answers = ask(4, concurrency=1, retries=0)
    errors = [answer.error or problem(answer) for answer in answers.values()]
    assert [error is None for error in errors] == [True, False, True, True]
    assert len(errors[1]) < 400


def test_a_reply_that_breaks_off_is_asked_for_again(server):
    cut = {"Content-Length": 500, "Connection": "close"}
    server.fail = lambda number, body: (200, cut, completion()) if number < 1 else None
    assert ask(retries=1, timeout=5)[0].text == f"What? {mean_colour(picture(0))}"
    assert len(server.requests) == 2


@pytest.mark.parametrize("models", [b"no JSON", b'{"data": [3, {"id": []}]}'])
def test_whatever_the_list_of_models_is_captions_are_asked_for(server, models):
    server.models = models
    found = engine(retries=0)
    assert found.version == "openai server"
    [(_, answer)] = found.answer(requests(1))
    assert answer.error is None


@pytest.mark.parametrize("url", ["", "host:8000", "http://127.0.0.1:9/v1"])
def test_an_address_without_a_server_is_one_sentence(monkeypatch, url):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ask(retries=0)


def test_no_picture_goes_where_the_server_redirects_it(server):
    with serving() as other:
        server.fail = lambda number, body: (
            307,
            {"Location": f"{other.url}/chat/completions"},
        )
        with pytest.raises(UserError, match="address"):
            ask()
        assert other.requests == []


# --- letters -------------------------------------------------------------------------------------


def score(n=1, options=("banded", "dotted", "woven")):
    prompts = (letters_prompt(options), letters_prompt(options[::-1]))
    choices = Choices("multiple_choice", letters_of(len(options)), prompts)
    url = data_url(picture(0))
    asked = [Request(key, [url], prompts[0], choices) for key in range(n)]
    return {request.key: answer for request, answer in engine(retries=0).answer(asked)}


def test_letters_are_read_from_the_first_token(server):
    one = [("B", -0.2), (" B", -2.0), ("A", -3.0), ("D", -4.0), (" C", -5.0)]
    other = [
        (" C", -0.1),
        ("A", -3.5),
        ("B", -4.5),
        ("The", -5.5),
    ]  # D: at most the smallest
    server.likely = lambda body: one if "A. banded" in str(body) else other
    answers = score(6)
    assert sorted(answers) == list(range(6))
    assert len(server.requests) == 12
    both = math.log(math.exp(-0.2) + math.exp(-2.0))
    for answer in answers.values():
        scores = ChoiceScores.parse(answer.text)
        first, second = scores.log_probabilities
        assert first == pytest.approx((-3.0, both, -5.0, -4.0), abs=1e-5)
        assert second == (-3.5, -4.5, -0.1, -5.5)
        assert scores.first == ("B", " C")
        assert (answer.n_read, answer.n_tokens) == (2, 2)  # of both orders
    body = server.requests[0]["body"]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)


@pytest.mark.parametrize("likely", [None, [], [("A", None)]], ids=str)
def test_a_reply_without_log_probabilities_is_an_error_of_its_request(server, likely):
    server.likely = likely if likely is None else lambda body: likely
    assert score()[0].error
