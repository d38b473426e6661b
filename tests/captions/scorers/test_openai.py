import itertools
import math

import pytest
from support.captioning import SETTINGS as BASE
from support.chat_server import MODEL

from latteclip.captions.letters import letters_of, letters_prompt
from latteclip.captions.requests import Choices, Request
from latteclip.captions.scorers.openai import OpenaiScorer
from latteclip.captions.scores import read_scores
from latteclip.core.errors import UserError

SETTINGS = {**vars(BASE), "engine": "openai", "model": MODEL, "concurrency": 4, "retries": 0}
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGA"
    "hKmMIQAAAABJRU5ErkJggg=="
)


def ask(n=1, options=("banded", "dotted", "woven")):
    scorer = OpenaiScorer(type(BASE)(**SETTINGS))
    prompts = (letters_prompt(options), letters_prompt(options[::-1]))
    choices = Choices("multiple_choice", letters_of(len(options)), prompts)
    asked = [Request(key, [PICTURE], prompts[0], choices) for key in range(n)]
    return {request.key: answer for request, answer in scorer.answer(asked)}


def test_letters_are_read_from_the_first_token(server):
    one = [("B", -0.2), (" B", -2.0), ("A", -3.0), ("D", -4.0), (" C", -5.0)]
    other = [(" C", -0.1), ("A", -3.5), ("B", -4.5), ("D", -5.5)]
    server.likely = lambda body: one if "A. banded" in str(body) else other
    answers = ask(6)
    assert sorted(answers) == list(range(6))
    assert len(server.requests) == 12
    both = math.log(math.exp(-0.2) + math.exp(-2.0))
    for answer in answers.values():
        scores = read_scores(answer.text)
        first, second = scores.log_probabilities
        assert first == pytest.approx((-3.0, both, -5.0, -4.0), abs=1e-5)
        assert second == (-3.5, -4.5, -0.1, -5.5)
        assert scores.first == ("B", " C")
    body = server.requests[0]["body"]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    asked = {request["body"]["messages"][0]["content"][-1]["text"] for request in server.requests}
    names = ["banded", "dotted", "woven"]
    assert asked == {letters_prompt(names), letters_prompt(names[::-1])}


def test_a_letter_that_is_not_named_has_at_most_the_smallest_that_is(server):
    server.likely = lambda body: [("A", -0.1), ("The", -3.0), ("C", -6.5)]
    [answer] = ask().values()
    assert read_scores(answer.text).log_probabilities == ((-0.1, -6.5, -6.5, -6.5),) * 2


@pytest.mark.parametrize("likely", [None, lambda body: []], ids=["no key", "no token"])
def test_a_server_that_tells_no_log_probabilities_is_one_sentence(server, likely):
    server.likely = likely
    with pytest.raises(UserError, match=r"captioner\.engine"):
        ask()


def test_one_reply_without_log_probabilities_among_others_is_an_error_of_its_own(server):
    counted = itertools.count()
    server.likely = lambda body: [] if next(counted) == 6 else [("A", -0.1)]
    errors = [answer.error for answer in ask(5).values()]
    assert errors.count("the reply has no log-probabilities") == 1
    assert errors.count(None) == 4
