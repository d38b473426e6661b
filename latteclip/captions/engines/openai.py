"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openai

from latteclip.captions.engine import (
    ChoiceScores,
    Response,
    failed,
    messages,
)
from latteclip.captions.engines.server import ServerEngine, picture_parts
from latteclip.captions.questions import Request
from latteclip.config.keys import CaptionerSection
from latteclip.core.terminal import KEY, URL

# Parameters that the reasoning models of OpenAI refuse.
REFUSABLE = {"max_tokens", "temperature"}
TOP_LOGPROBS = 20  # tokens that a server names at most


class OpenaiEngine(ServerEngine):
    """Asks for a caption, or for the log-probabilities of the first token."""

    version = "openai server"
    example = "http://host:8000/v1"
    url = URL
    key = KEY

    def __init__(self, settings: CaptionerSection, *_: object) -> None:
        super().__init__(settings)
        self._refused = set[str]()

    def _reply(self, request: Request) -> Response:
        if request.choices is None:
            return self._caption(request)
        if not request.choices.by_letters:
            return failed("a server has no likelihoods; set scores.kind to multiple_choice")
        return self._score(request, request.choices.prompts, request.choices.texts)

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
        usage = reply.usage
        text = choice.message.content or ""
        if choice.finish_reason == "content_filter" and not text:
            return failed("the server filtered the answer", is_refused=True)
        return Response(
            text,
            choice.finish_reason or "unknown",
            None if usage is None else usage.completion_tokens,
            n_read=None if usage is None else usage.prompt_tokens,
        )

    def _score(
        self, request: Request, prompts: Sequence[str], letters: Sequence[str]
    ) -> Response:
        """Read the letters among the tokens that the server names for the start of its answer.

        A letter that is not among them gets the smallest log-probability that was named, an upper
        bound of its log-probability.
        """
        rows = []
        first = []
        usages = []
        options = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        for prompt in prompts:
            reply = self._complete(request, prompt, 1, **options)
            logprobs = reply.choices[0].logprobs
            if (
                logprobs is None
                or not logprobs.content
                or not logprobs.content[0].top_logprobs
            ):
                raise ValueError(
                    "it has no log-probabilities (top_logprobs), which letters need; use another "
                    "server, or captioner.engine vllm or transformers"
                )
            values: dict[str, list[float]] = {letter: [] for letter in letters}
            token = logprobs.content[0]
            named = token.top_logprobs
            for each in named:
                values.get(each.token.removeprefix(" "), []).append(each.logprob)
            smallest = min(each.logprob for each in named)
            sums = [
                float(np.logaddexp.reduce(each)) if each else float(smallest)
                for each in values.values()
            ]
            rows.append(tuple(sums))
            first.append(str(token.token))
            usages.append(reply.usage)
        n_read = None
        if None not in usages:
            n_read = sum(usage.prompt_tokens for usage in usages)
        return ChoiceScores(tuple(rows), tuple(first)).as_answer(len(rows), n_read)


make = OpenaiEngine
