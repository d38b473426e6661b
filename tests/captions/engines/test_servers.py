"""Engines that ask a server: what they have in common, chat completions and decision models."""

import gzip
import json
import math
import signal
import threading
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from support.captioning import SETTINGS as BASE
from support.servers import answer_at_once, sentence, serving

from latteclip.captions import answers
from latteclip.captions.engine import scores_of
from latteclip.captions.engines import openai
from latteclip.captions.questions import Choices, Request
from latteclip.captions.score_classes import letters_of, letters_prompt
from latteclip.core.errors import Terminated, UserError

NAMES = ("banded", "dotted", "woven")
SOON = {"retry-after-ms": 1}
QUESTION = json.dumps({"instructions": "Which?", "criteria": dict.fromkeys(NAMES)})


def picture(number):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))


def engine(service, retries=2, **changes):
    settings = {**dict(BASE), "engine": service.engine, "model": service.model}
    settings |= {"batch_size": 4, **changes}
    with mock.patch("latteclip.captions.engines.openai.RETRIES", retries):
        return answers.start(type(BASE)(**settings), 1)


def requests(service, n):
    choices = None
    if service.engine == "decisions":
        choices = Choices(NAMES, (QUESTION,))
    return [Request(i, [picture(i)], "What?", choices) for i in range(n)]


def ask(service, n=1, **changes):
    found = engine(service, **changes).answer(requests(service, n))
    return {request.key: answer for request, answer in found}


def errors(service, n=3, **changes):
    """The errors of requests that are asked one after another."""
    found = ask(service, n, **{"batch_size": 1, "retries": 0, **changes})
    return [found[key].error for key in range(n)]


def failing(service, failure, *numbers):
    """Have the service answer so to the requests of these numbers, or to all."""
    service.fail = lambda number, _: failure if not numbers or number in numbers else None


def test_several_requests_are_under_way_and_each_gets_its_answer(service):
    four = threading.Barrier(4)
    service.fail = lambda *_: four.wait(timeout=60) and None
    answers = ask(service, 12)
    assert sorted(answers) == list(range(12))
    assert not any(answer.error for answer in answers.values())
    assert service.most_active == 4


def test_a_signal_loses_no_answer_that_has_arrived(service, monkeypatch):
    def interrupted():
        yield from requests(service, 3)
        raise Terminated(signal.SIGINT)

    answer_at_once(monkeypatch)
    found = []
    with pytest.raises(Terminated) as ended:
        for request, _ in engine(service).answer(interrupted()):
            found.append(request.key)
    assert sorted(found) == [0, 1, 2]
    assert "0 of at most 4" in ended.value.__notes__[0]


ENDLESS = {
    "headers": ("TIMEOUT", 0.3, {"X-Long": "x" * 500}, b"{}", "seconds"),
    "content": ("TIMEOUT", 0.3, {}, b" " * 500, "seconds"),
    "bytes": ("MAX_REPLY", 200, {}, b" " * 500, "bytes"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_reply_that_does_not_end_is_an_error_of_its_request(
    service, monkeypatch, name, caplog
):
    limit, value, headers, content, reason = ENDLESS[name]
    monkeypatch.setattr(openai, limit, value)
    service.drip = 0.005
    failing(service, (200, headers, content))
    openai._warn.cache_clear()
    assert reason in errors(service, 1)[0]
    assert len(service.requests) == 1
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(said) == (limit == "TIMEOUT") and all("asked again" in one for one in said)


def test_a_compressed_reply_is_not_unpacked(service):
    bomb = gzip.compress(bytes(2**20))
    failing(service, (200, {"Content-Encoding": "gzip"}, bomb))
    assert "compressed" in errors(service, 1)[0]
    assert service.requests[0]["headers"]["accept-encoding"] == "identity"


REPLIES = {
    "a damaged picture": (400, {}, sentence("Damaged.")),
    "no JSON": (200, {}, b"<html>proxy</html>"),
    "depth": (200, {}, b"[" * 100_000),
    "a list": (200, {}, b"[]"),
    "no answer": (200, {}, b'{"choices": [], "answers": {}}'),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_is_no_answer_is_an_error_of_its_request_alone(service, name):
    failing(service, REPLIES[name], 1)
    found = errors(service)
    assert [error is None for error in found] == [True, False, True]
    assert len(found[1]) < 400
    assert ("Damaged" in found[1]) == (name == "a damaged picture")
    assert len(service.requests) == 3


def test_an_address_without_a_scheme_is_an_error_that_names_its_variable(
    service, monkeypatch
):
    variable = f"{service.engine.upper()}_BASE_URL"
    monkeypatch.setenv(variable, "host:8000")
    assert variable in errors(service, 1)[0]


def test_no_picture_goes_where_the_server_redirects_it(service):
    with serving(type(service)) as other:
        failing(service, (307, {"Location": f"{other.url}/decisions"}, {}))
        with pytest.raises(UserError, match="307"):
            ask(service)
        assert other.requests == []


def test_answers_under_way_are_not_lost_when_the_credit_ends(service):
    service.pause = 0.2
    failing(service, (402, {}, sentence("Top up.")), 4)
    found = {}
    with pytest.raises(UserError, match="Top up"):
        for request, answer in engine(service).answer(requests(service, 30)):
            found[request.key] = answer
    assert len(found) == len(service.requests) - 1  # all that were paid for


# --- chat completions ---------------------------------------------------------------------------


def test_an_error_in_place_of_an_answer_is_its_reason(server):
    failing(server, (200, {}, sentence("Overloaded.")))
    assert "Overloaded" in errors(server, 1)[0]


@pytest.mark.parametrize(
    ("message", "text", "is_refused"),
    [
        ({"content": "A dog \ud83d"}, "A dog ", False),  # half a character
        ({"content": None, "refusal": "I cannot see that."}, "", True),
        ({"content": "I\u2019m sorry, I can't help with that."}, "", True),
        ({"content": "I can't view images."}, "", True),
    ],
)
def test_an_answer_is_what_files_take_or_a_refusal(server, message, text, is_refused):
    def change(number, reply):
        reply["choices"][0]["message"] |= message
        return reply

    server.change = change
    answer = ask(server)[0]
    assert (answer.text, answer.is_refused) == (text, is_refused)


def score(server, n=1, options=("banded", "dotted", "woven")):
    prompts = (letters_prompt(options), letters_prompt(options[::-1]))
    choices = Choices(letters_of(len(options)), prompts, by_letters=True)
    shown = [picture(0)]
    asked = [Request(key, shown, prompts[0], choices) for key in range(n)]
    found = engine(server, retries=0).answer(asked)
    return {request.key: answer for request, answer in found}


def test_letters_are_read_from_the_first_token(server):
    one = [("B", -0.2), (" B", -2.0), ("A", -3.0), ("D", -4.0), (" C", -5.0)]
    other = [(" C", -0.1), ("A", -3.5), ("B", -4.5), ("The", -5.5)]  # D: the smallest
    server.likely = lambda body: one if "A. banded" in str(body) else other
    answers = score(server, 6)
    assert sorted(answers) == list(range(6))
    assert len(server.requests) == 12
    both = math.log(math.exp(-0.2) + math.exp(-2.0))
    for answer in answers.values():
        first, second = scores_of(answer)
        assert first == pytest.approx([-3.0, both, -5.0, -4.0], abs=1e-5)
        assert second == [-3.5, -4.5, -0.1, -5.5]
        assert (answer.n_read, answer.n_tokens) == (2, 2)  # of both orders
    body = server.requests[0]["body"]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)


def test_a_reasoning_model_is_asked_without_what_it_refuses(server):
    def fail(number, body):
        for name in ("max_tokens", "temperature"):
            if name in body:
                error = {"message": f"Unsupported: {name}", "param": name}
                return 400, {}, {"error": error}
        return None

    server.fail = fail
    assert errors(server, 3) == [None] * 3
    assert len(server.requests) == 5
    assert server.requests[-1]["body"]["max_completion_tokens"] == BASE.max_new_tokens


@pytest.mark.parametrize(
    "likely", [None, [], [("A", None)], [("A", 10**400)], [("I", -0.1)]], ids=ascii
)
def test_a_reply_without_letters_is_an_error_of_its_request(server, likely):
    server.likely = likely if likely is None else lambda body: likely
    assert score(server)[0].error


# --- decision models ----------------------------------------------------------------------------


def test_either_path_is_found_and_then_asked_alone(decisions, monkeypatch):
    decisions.path = "/v1/systemone"
    monkeypatch.setenv("DECISIONS_BASE_URL", f"{decisions.url}/v1/")  # v1 may be given
    assert errors(decisions, 4) == [None] * 4
    assert len(decisions.requests) == 4


def test_names_of_another_account_do_not_leave(decisions, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "our-organisation")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "our-project")
    ask(decisions)
    assert "our-" not in json.dumps(decisions.requests[0]["headers"])


def of_first(**changes):
    """A change of the answer to the first question."""
    return lambda reply: next(iter(reply["answers"].values())).update(changes)


def rename(reply):
    _, answer = reply["answers"].popitem()
    reply["answers"]["other"] = answer


WRONG = {
    "sum to 3": of_first(probabilities={"banded": 1.5, "woven": 1.5}),
    "unknown": of_first(probabilities={"banded": 0.5, "striped": 0.5}),
    "400 digits": of_first(probabilities={"banded": 10**400}),
    "a text": of_first(probabilities={"banded": "1"}),
    "not a number": of_first(probabilities={"banded": math.nan}),
    "another choice": of_first(choice="striped"),
    "another question": rename,
    "no answers": lambda reply: reply.pop("answers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_of_its_request(decisions, name):
    def change(number, reply):
        if number == 1:
            WRONG[name](reply)
        return reply

    decisions.change = change
    answers = ask(decisions, 3, batch_size=1)
    assert [answer.error is None for answer in answers.values()] == [True, False, True]
    assert len(answers[1].error) < 400 and "pydantic" not in answers[1].error
