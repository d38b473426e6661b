"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine."""

from typing import Any

import numpy as np
import openai

from latteclip.captions.engine import Response, failed, messages, scored
from latteclip.captions.engines.server import ServerEngine, picture_parts
from latteclip.captions.questions import Choices, Request
from latteclip.config.keys import CaptionerSection

# Parameters that the reasoning models of OpenAI refuse.
REFUSABLE = {"max_tokens", "temperature"}
TOP_LOGPROBS = 20  # tokens that a server names at most


class OpenaiEngine(ServerEngine):
    """Asks for a caption, or for the log-probabilities of the first token."""

    def __init__(self, settings: CaptionerSection, *_: object) -> None:
        super().__init__(settings)
        self._refused = set[str]()

    def _reply(self, request: Request) -> Response:
        if request.choices is None:
            return self._caption(request)
        return self._score(request, request.choices)

    def _complete(self, request: Request, prompt: str, length: int, **options: Any) -> Any:
        """Return a reply. Reasoning models refuse parameters that others need."""
        turns: Any = messages(picture_parts(request), prompt)
        while True:
            wanted = {"temperature": 0.0, "max_tokens": length, **options}
            for name in self._refused & wanted.keys():
                value = wanted.pop(name)
                if name == "max_tokens":
                    wanted["max_completion_tokens"] = value
            try:
                return self._client.chat.completions.create(
                    model=self._settings.model, messages=turns, **wanted
                )
            except openai.BadRequestError as error:
                if error.param not in REFUSABLE or error.param not in wanted:
                    raise
                self._refused.add(error.param)

    def _caption(self, request: Request) -> Response:
        reply = self._complete(request, request.prompt, self._settings.max_new_tokens)
        choice = reply.choices[0]
        text = choice.message.content or ""
        if choice.finish_reason == "content_filter" and not text:
            return failed("the server filtered the answer", is_refused=True)
        return Response(
            text,
            choice.finish_reason or "unknown",
            getattr(reply.usage, "completion_tokens", None),
            getattr(reply.usage, "prompt_tokens", None),
        )

    def _score(self, request: Request, choices: Choices) -> Response:
        """Read the letters among the tokens that the server names for the start of its answer.

        A letter that is not among them gets the smallest log-probability that was named, an upper
        bound of its log-probability.
        """
        rows = []
        first = []
        n_read = 0
        for prompt in choices.prompts:
            reply = self._complete(
                request, prompt, 1, logprobs=True, top_logprobs=TOP_LOGPROBS
            )
            logprobs = reply.choices[0].logprobs
            if not (logprobs and logprobs.content and logprobs.content[0].top_logprobs):
                raise ValueError(
                    "it has no log-probabilities (top_logprobs), which letters need; use another "
                    "server, or captioner.engine vllm or transformers"
                )
            token = logprobs.content[0]
            named = {letter: list[float]() for letter in choices.texts}
            for each in token.top_logprobs:
                named.get(each.token.removeprefix(" "), []).append(float(each.logprob))
            smallest = min(float(each.logprob) for each in token.top_logprobs)
            rows.append(
                [float(np.logaddexp.reduce(each or [smallest])) for each in named.values()]
            )
            first.append(token.token)
            n_read += reply.usage.prompt_tokens if reply.usage else 0
        return scored(choices, rows, first, len(rows), n_read)


make = OpenaiEngine
