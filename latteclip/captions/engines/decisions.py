"""Any server that answers typed questions with probabilities: a decision model.

A request has a picture and one question of the type `choice` for each order of the options. The
protocol is that of `POST /v1/decisions` and `POST /v1/systemone`, as their documents describe it.
"""

import json
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import openai
from pydantic import BaseModel, Field, ValidationError

from latteclip.captions.engine import Response, Tokens, scored
from latteclip.captions.engines.openai import Parts, ServerEngine
from latteclip.captions.questions import Request
from latteclip.config.keys import CaptionerSection
from latteclip.core.files import wanted
from latteclip.core.terminal import decisions_address

PATHS = ["/decisions", "/systemone"]  # below /v1; a server has one of the two
NOT_THERE = {404, 405}  # what it answers at the other
TOLERANCE = 0.02  # largest error of a sum of probabilities


class Decision(BaseModel, strict=True):
    """The answer to a question."""

    type: Literal["choice"]
    choice: str
    probabilities: dict[str, Annotated[float, Field(ge=0, le=1 + TOLERANCE)]]


class Usage(BaseModel, strict=True):
    """Tokens of a request."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class Reply(BaseModel, strict=True):
    """What the server answers."""

    answers: dict[str, Decision]
    usage: Usage = Usage()


class DecisionsEngine(ServerEngine):
    """Asks which option a picture shows, and reads the probabilities of all options."""

    def __init__(self, settings: CaptionerSection, *_: object) -> None:
        super().__init__(settings)
        # The SDK takes both from variables that are meant for another service.
        self._client.organization = None
        self._client.project = None
        self._client.base_url = decisions_address(str(self._client.base_url))
        self._paths = PATHS  # one is known after the first answer

    async def _reply(self, request: Request, pictures: Parts) -> Response:
        assert request.choices is not None  # the configuration allows no captions
        questions = {
            f"order_{number}": {"type": "choice", **json.loads(prompt)}
            for number, prompt in enumerate(request.choices.prompts)
        }
        body = {
            "model": self._settings.model,
            "state": pictures,
            "questions": questions,
        }
        try:
            reply = Reply.model_validate_json(await self._post(body))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise ValueError(f"{place} must {wanted(first)}") from None
        if reply.answers.keys() != questions.keys():
            raise ValueError(
                f"it answers {[*reply.answers]} in place of {[*questions]}"
            )
        rows = [
            log_probabilities(reply.answers[name], question["criteria"])
            for name, question in questions.items()
        ]
        return scored(
            request.choices,
            rows,
            n_tokens=reply.usage.output_tokens,
            n_read=reply.usage.input_tokens,
        )

    async def _post(self, body: Mapping[str, Any]) -> str:
        """Return the text of the reply, at the path that the server has."""
        path, *others = self._paths
        try:
            text = await self._client.post(path, cast_to=str, body=body)
        except openai.APIStatusError as error:
            if error.status_code not in NOT_THERE or not others:
                raise
            self._paths = others
            return await self._post(body)
        self._paths = [path]
        return text


make = DecisionsEngine


def log_probabilities(answer: Decision, options: Collection[str]) -> list[float]:
    """Return the logarithms of probabilities that sum to 1; an option without one has 0.

    ValueError: they do not sum to 1, or are of other options.
    """
    if unknown := {answer.choice, *answer.probabilities} - {*options}:
        raise ValueError(
            f"it names options that were not given: {sorted(unknown)[:3]}"
        )
    total = sum(answer.probabilities.values())
    if abs(total - 1) > TOLERANCE:
        raise ValueError(f"its probabilities sum to {total:.3g}")
    values = [answer.probabilities.get(option, 0.0) / total for option in options]
    return [math.log(value) if value else -math.inf for value in values]
