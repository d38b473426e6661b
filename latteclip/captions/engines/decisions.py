"""Any server that answers typed questions with probabilities: a decision model.

A request has a picture and one question of the type `choice` for each order of the options. The
protocol is that of `POST /v1/decisions` and `POST /v1/systemone`, as their documents describe it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import openai

from latteclip.captions.engine import ChoiceScores, Response, failed
from latteclip.captions.engines.server import ServerEngine, picture_parts, why
from latteclip.captions.questions import Request
from latteclip.config.keys import CaptionerSection
from latteclip.core.errors import UserError
from latteclip.core.terminal import (
    DECISIONS_KEY,
    DECISIONS_URL,
    decisions_address,
    one_line,
)

PATHS = ("/decisions", "/systemone")  # below /v1; a server has one of the two
NOT_THERE = {404, 405}  # what it answers at the other
MAX_NUMBER = 2**31  # of tokens, say
TOLERANCE = 0.02  # largest error of a sum of probabilities


class DecisionsEngine(ServerEngine):
    """Asks which option a picture shows, and reads the probabilities of all options."""

    version = "decisions server"
    example = "https://host"
    url = DECISIONS_URL
    key = DECISIONS_KEY

    def __init__(self, settings: CaptionerSection, *_: object) -> None:
        super().__init__(settings)
        # The SDK takes both from variables that are meant for another service.
        self._client.organization = None
        self._client.project = None
        self._path: str | None = None  # known after the first answer

    def _base(self, url: str) -> str:
        return decisions_address(url)

    def _reply(self, request: Request) -> Response:
        if request.choices is None or request.choices.kind != "decisions":
            raise UserError(
                "Engine decisions writes no captions and scores no texts; set scores.kind to "
                "decisions, or another captioner.engine."
            )
        questions = {}
        for number, prompt in enumerate(request.choices.prompts):
            # By its name, an answer about another picture is recognised.
            name = f"picture_{request.digest[:8]}_{number}"
            questions[name] = {"type": "choice", **json.loads(prompt)}
        body = {
            "model": self._settings.model,
            "state": picture_parts(request),
            "questions": questions,
        }
        return read_reply(self._post(body), questions)

    def _post(self, body: Mapping[str, Any]) -> str:
        """Return the text of the reply, at the path that the server has."""
        reasons = []
        for path in PATHS if self._path is None else [self._path]:
            try:
                text = self._client.post(path, cast_to=str, body=body)
            except openai.APIStatusError as error:
                if error.status_code not in NOT_THERE:
                    raise
                reasons.append(f"{path}: {why(error)}")
            else:
                self._path = path
                return text
        raise UserError(
            f"{self._where} has none of the paths, or does not know the model "
            f"({'; '.join(reasons)}); check {self.url} and captioner.model."
        )


make = DecisionsEngine


def read_reply(text: str, questions: Mapping[str, Any]) -> Response:
    """Return the log-probabilities of the options of each question, with the tokens of both.

    An answer that cannot be used has an error and its tokens, for they were used too.
    """
    reply = json.loads(text)
    if not isinstance(reply, dict):
        raise ValueError(f"it is {one_line(text, 40)}")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    n_read = _number(usage.get("input_tokens"), int)
    n_written = _number(usage.get("output_tokens"), int)
    try:
        answer = _scores(reply.get("answers"), questions).as_answer(n_written)
    except ValueError as error:
        answer = failed(f"the server's answer cannot be used: {one_line(error)}")
    return replace(answer, n_read=n_read)


def _number(value: Any, *types: type) -> Any:
    """Return a number from 0 to MAX_NUMBER, or None."""
    is_number = type(value) in types and 0 <= value <= MAX_NUMBER
    return value if is_number else None


def _scores(answers: Any, questions: Mapping[str, Any]) -> ChoiceScores:
    if not isinstance(answers, dict) or answers.keys() != questions.keys():
        named = sorted(answers) if isinstance(answers, dict) else answers
        raise ValueError(f"it answers {named} in place of {sorted(questions)}")
    rows = []
    first = []
    for name, question in questions.items():
        options = list(question["criteria"])
        answer = answers[name]
        if not isinstance(answer, dict) or answer.get("type") != "choice":
            raise ValueError("its answer is no choice")
        if answer.get("choice") not in options:
            raise ValueError(f"its choice {answer.get('choice')!r} is none of the options")
        rows.append(_log_probabilities(answer.get("probabilities"), options))
        first.append(answer["choice"])
    return ChoiceScores(tuple(rows), tuple(first))


def _log_probabilities(given: Any, options: Sequence[str]) -> tuple[float, ...]:
    """Return the logarithms of probabilities that sum to 1; an option without one has 0."""
    if not isinstance(given, dict):
        raise ValueError("it has no probabilities")
    if unknown := given.keys() - set(options):
        raise ValueError(f"it names options that were not given: {sorted(unknown)[:3]}")
    values = []
    for option in options:
        value = _number(given.get(option, 0.0), float, int)
        if value is None:
            raise ValueError(f"the probability of {option!r} is {given[option]!r}")
        values.append(float(value))
    total = sum(values)
    if abs(total - 1) > TOLERANCE:
        raise ValueError(f"its probabilities sum to {total:.3g}")
    return tuple(math.log(value / total) if value else -math.inf for value in values)
