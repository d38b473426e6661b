import numpy as np
import pytest
from PIL import Image
from support.captioning import SETTINGS as BASE
from support.chat_server import MODEL, describe, serving

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
