"""The engine decisions against a server of its protocol, with limits and faults of real ones."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from support.captioning import SETTINGS as BASE
from support.decision_server import HTML, KEY, MODEL, decide, sentence, serving

from latteclip.captions.answer_cache import problem
from latteclip.captions.engines.decisions import (
    DecisionsEngine,
    Pace,
    fitted,
    tiles,
)
from latteclip.captions.pictures import data_url
from latteclip.captions.requests import Choices, ChoiceScores, Request
from latteclip.core.errors import UserError

SETTINGS = {
    **dict(BASE),
    "engine": "decisions",
    "model": MODEL,
    "concurrency": 4,
    "retries": 2,
    "requests_per_second": 1000,
}
NAMES = ("banded", "dotted", "woven")
NONE = "none of these"


def picture(number, size=(6, 5)):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def question(options):
    criteria = {**{name: f"a photo of a {name}." for name in options}, NONE: None}
    return json.dumps({"instructions": "Which?", "criteria": criteria})


CHOICES = Choices("decisions", NAMES, (question(NAMES), question(NAMES[::-1])))


def requests(n, **picture_of):
    return [
        Request(
            number,
            [data_url(picture(number, **picture_of))],
            "",
            CHOICES,
            digest=f"{number:032x}"[::-1],
        )
        for number in range(n)
    ]


def engine(**changes):
    return DecisionsEngine(type(BASE)(**{**SETTINGS, **changes}))


def ask(n=1, asked=None, **changes):
    found = engine(**changes).answer(asked or requests(n))
    return {request.key: answer for request, answer in found}


def expected(number, options):
    chances = decide(picture(number), json.loads(question(options)))
    return [math.log(chances[name]) for name in [*options, NONE]]


# --- what is asked and answered ------------------------------------------------------------------


def test_each_order_is_a_question_and_probabilities_come_back_with_their_cost(decisions):
    decisions.pause = 0.05
    answers = ask(12)
    assert sorted(answers) == list(range(12))
    for number, answer in answers.items():
        scores = ChoiceScores.parse(answer.text)
        first, second = scores.log_probabilities
        assert first == pytest.approx(expected(number, NAMES), abs=1e-5)
        assert second == pytest.approx(expected(number, NAMES[::-1]), abs=1e-5)
        assert (answer.n_read, answer.n_tokens) == (1 + 95 + 2 * 92, 0)
        assert answer.cost == pytest.approx(answer.n_read * 0.04e-6)
        assert problem(answer) is None
    assert decisions.most_active == 4
    sent = decisions.requests[0]
    assert sent["headers"]["authorization"] == f"Bearer {KEY}"
    second = list(sent["body"]["questions"].values())[1]
    assert list(second["criteria"]) == [*NAMES[::-1], NONE]


def test_either_path_is_found_and_then_asked_alone(decisions):
    decisions.path = "/v1/systemone"
    answers = ask(4, concurrency=1)
    assert [answer.error for answer in answers.values()] == [None] * 4
    assert len(decisions.requests) == 4


def test_an_address_may_end_in_v1(decisions, monkeypatch):
    monkeypatch.setenv("DECISIONS_BASE_URL", f"{decisions.url}/v1/")
    assert ask()[0].error is None


def test_a_cost_that_the_server_does_not_name_is_unknown(decisions):
    decisions.costs = False
    assert ask()[0].cost is None


def test_requests_leave_at_most_at_the_pace_of_the_configuration(decisions):
    answers = ask(6, requests_per_second=50)
    assert len(answers) == 6
    times = sorted(sent["time"] for sent in decisions.requests)
    assert times[-1] - times[0] > 4 / 50  # five gaps, of which a slow start may hide one


def test_threads_take_turns_one_gap_apart(monkeypatch):
    waited = []
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    monkeypatch.setattr("time.sleep", waited.append)
    pace = Pace(4)
    for _ in range(3):
        pace.wait()
    assert waited == [0, 0.25, 0.5]


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(1440, 1440), (1441, 1441), (4000, 3000), (3000, 60), (90000, 20), (31, 33)]
)
def test_pictures_are_as_large_as_tiles_allow(size):
    found = fitted(*size)
    assert tiles(found) <= 2048
    if tiles(size) <= 2048:
        assert found == size
    else:
        assert tiles(found) > 1900
        assert found[0] / found[1] == pytest.approx(size[0] / size[1], rel=0.05)


def test_a_large_picture_is_scaled_before_it_is_sent(decisions):
    url = data_url(Image.new("RGB", (2000, 1200), (9, 8, 7)))
    answers = ask(asked=[Request(0, [url], "", CHOICES)])
    assert answers[0].error is None
    assert 1900 < answers[0].n_read - 95 - 2 * 92 <= 2048


def test_a_request_that_is_too_large_is_an_error_of_its_own(decisions):
    answers = ask(asked=[*requests(1, size=(700, 700)), *requests(2)[1:]])
    assert answers[0].error.startswith("HTTP 413")
    assert answers[1].error is None


# --- a server that fails -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [(429, {"retry-after-ms": 1}, {}), (504, {"retry-after-ms": 1}, HTML)]
)
def test_a_busy_or_failing_server_is_asked_again(decisions, failure):
    decisions.fail = lambda number, body: failure if number < 2 else None
    assert ask()[0].error is None
    assert len(decisions.requests) == 3


def test_a_server_is_left_alone_as_long_as_it_says(decisions):
    busy = (429, {"Retry-After": 1}, sentence("slow down"))
    decisions.fail = lambda number, body: busy if number == 0 else None
    assert ask()[0].error is None
    first, second = decisions.requests
    assert second["time"] - first["time"] >= 0.9


def test_a_page_in_place_of_an_answer_is_not_repeated_in_the_error(decisions):
    decisions.fail = lambda number, body: (504, {}, HTML)
    error = ask(retries=0)[0].error
    assert error.startswith("HTTP 504") and "<" not in error


def test_an_answer_that_does_not_come_in_time_is_an_error_of_its_request(decisions):
    decisions.pause = 1
    assert "timed out" in ask(timeout=0.1, retries=0)[0].error.lower()


def test_a_refused_picture_is_an_error_of_its_own_with_the_server_s_sentence(decisions):
    bad = requests(8)[5].pictures[0]

    def fail(number, body):
        is_bad = body["state"][0]["image_url"]["url"] == bad
        return (400, {}, sentence("The picture is damaged.")) if is_bad else None

    decisions.fail = fail
    answers = ask(8)
    assert "The picture is damaged" in answers[5].error
    assert [key for key, answer in answers.items() if answer.error] == [5]
    assert len(decisions.requests) == 8  # a bad request is not repeated


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (401, "DECISIONS_API_KEY"),
        (402, "no credit is left"),
        (403, "DECISIONS_API_KEY"),
        (404, r"captioner\.model"),
    ],
)
def test_what_no_request_survives_ends_the_run_in_one_sentence(decisions, status, match):
    decisions.fail = lambda number, body: (status, {}, sentence("No."))
    with pytest.raises(UserError, match=match):
        ask(9)


def test_without_a_key_the_variable_is_named(decisions, monkeypatch):
    monkeypatch.delenv("DECISIONS_API_KEY")
    with pytest.raises(UserError, match="DECISIONS_API_KEY"):
        ask()


def test_answers_under_way_are_not_lost_when_the_credit_ends(decisions):
    decisions.pause = 0.2
    no_credit = (402, {}, sentence("Top up."))
    decisions.fail = lambda number, body: no_credit if number == 4 else None
    found = {}
    with pytest.raises(UserError, match="Top up"):
        for request, answer in engine().answer(requests(30)):
            found[request.key] = answer
    assert len(found) == len(decisions.requests) - 1  # all that were paid for
    assert all(answer.cost for answer in found.values())


@pytest.mark.parametrize("url", ["", "host:8000", "http://127.0.0.1:9"])
def test_an_address_without_a_server_is_one_sentence(monkeypatch, url):
    monkeypatch.setenv("DECISIONS_BASE_URL", url)
    with pytest.raises(UserError, match="DECISIONS_BASE_URL"):
        ask(retries=0)


def test_no_picture_goes_where_the_server_redirects_it(decisions):
    with serving() as other:
        there = {"Location": f"{other.url}/v1/decisions"}
        decisions.fail = lambda number, body: (307, there, {})
        with pytest.raises(UserError, match="address"):
            ask()
        assert other.requests == []


def test_names_of_another_account_do_not_leave(decisions, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "our-organisation")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "our-project")
    ask()
    assert "our-" not in json.dumps(decisions.requests[0]["headers"])


def test_it_writes_no_captions(decisions):
    with pytest.raises(UserError, match=r"scores\.kind"):
        ask(asked=[Request(0, requests(1)[0].pictures, "What?")])


# --- answers that cannot be used -----------------------------------------------------------------


def of_first(**changes):
    """A change of the answer to the first question."""

    def change(reply):
        next(iter(reply["answers"].values())).update(changes)

    return change


def rename(reply):
    _, answer = reply["answers"].popitem()
    reply["answers"]["other"] = answer


WRONG = {
    "sum to 3": of_first(probabilities={"banded": 1.5, "woven": 1.5}),
    "sum to 0": of_first(probabilities={}),
    "unknown": of_first(probabilities={"banded": 0.5, "striped": 0.5}),
    "negative": of_first(probabilities={"banded": 1.5, "woven": -0.5}),
    "a text": of_first(probabilities={"banded": "1"}),
    "not a number": of_first(probabilities={"banded": math.nan}),
    "a list": of_first(probabilities=[1.0]),
    "another choice": of_first(choice="striped"),
    "another type": of_first(type="score"),
    "another question": rename,
    "one question less": lambda reply: reply["answers"].popitem(),
    "no answers": lambda reply: reply.pop("answers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_of_its_request_with_its_cost(decisions, name):
    def change(number, reply):
        if number == 1:
            WRONG[name](reply)
        return reply

    decisions.change = change
    answers = ask(3, concurrency=1)
    assert [answer.error is None for answer in answers.values()] == [True, False, True]
    assert len(answers[1].error) < 400
    assert answers[1].cost > 0  # it was paid for


def test_an_answer_about_another_picture_is_an_error_of_its_request(decisions):
    replies = []

    def change(number, reply):
        replies.append(reply)
        return replies[0] if number == 2 else reply

    decisions.change = change
    answers = ask(4, concurrency=1)
    assert [key for key, answer in answers.items() if answer.error] == [2]


@pytest.mark.parametrize("reply", [b"<html>proxy</html>", b"[]", b"[" * 100_000])
def test_a_reply_that_is_no_answer_is_an_error_of_its_request(decisions, reply):
    decisions.fail = lambda number, body: (200, {}, reply) if number == 1 else None
    answers = ask(3, concurrency=1)
    assert [answer.error is None for answer in answers.values()] == [True, False, True]


def test_probabilities_are_rounded_or_missing_and_sum_to_one_again(decisions):
    rounded = {"banded": 0.67, "dotted": 0.32}
    decisions.decide = lambda picture, question: rounded
    first, _ = ChoiceScores.parse(ask()[0].text).log_probabilities
    assert np.exp(first) == pytest.approx([0.67 / 0.99, 0.32 / 0.99, 0, 0], abs=1e-5)


@pytest.mark.parametrize("usage", [None, {}, {"cost": "free"}, {"cost": -1}, []], ids=str)
def test_strange_usage_is_unknown(decisions, usage):
    decisions.change = lambda number, reply: {**reply, "usage": usage}
    answer = ask()[0]
    assert (answer.error, answer.cost, answer.n_read) == (None, None, None)
