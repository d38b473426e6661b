"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import openai

from latteclip.captions.requests import (
    CaptionerSettings,
    ChoiceScores,
    Request,
    Response,
    failed,
    messages,
)
from latteclip.core.errors import UserError
from latteclip.core.terminal import KEY, URL, one_line

REFUSED = {*range(300, 400), 401, 403, 404}  # no request will fare better
TOP_LOGPROBS = 20  # tokens that a server names at most
# Raised where a reply, as the SDK parsed it, lacks what it must have.
UNUSABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


def make(settings: CaptionerSettings, *_: object) -> "OpenaiEngine":
    """Connect to the server."""
    return OpenaiEngine(settings)


class OpenaiEngine:
    """Keeps several requests under way at once.

    The SDK waits and asks again, with growing and jittered pauses or as long as Retry-After says,
    when the server is busy, fails or cannot be reached.
    """

    version = "openai server"

    def __init__(self, settings: CaptionerSettings, *_: object) -> None:
        url = os.environ.get(URL)
        if not url:
            raise UserError(
                f"Engine openai needs a server: export {URL}=http://host:8000/v1."
            )
        self._where = f"The server at {one_line(url)} ({URL})"
        self._settings = settings
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY, "").strip() or "none",
            max_retries=settings.retries,
            timeout=settings.timeout,
            # Pictures go to this server alone.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        try:
            with contextlib.suppress(openai.APIStatusError, *UNUSABLE):  # some have no list
                self._client.models.list()
        except openai.APIError as error:
            raise UserError(f"{self._where} does not answer: {_why(error)}.") from None

    def answer(
        self, requests: Iterable[Request], *_: object
    ) -> Iterator[tuple[Request, Response]]:
        source = iter(requests)
        n = self._settings.concurrency
        waiting: dict[Future[Response], Request] = {}
        pool = ThreadPoolExecutor(n)
        try:
            while True:
                for request in itertools.islice(source, n - len(waiting)):
                    waiting[pool.submit(self._answer, request)] = request
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, request: Request) -> Response:
        """Return an answer, or why there is none. UserError: there is none for any request."""
        try:
            if request.choices is None:
                return self._caption(request)
            if not request.choices.by_letters:
                return failed(
                    "a server has no likelihoods; set scores.kind to multiple_choice"
                )
            return self._score(request, request.choices.prompts, request.choices.texts)
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise UserError(
                    f"{self._where} refuses to answer, or redirects to another address "
                    f"({_why(error)}); check {URL}, {KEY} and captioner.model."
                ) from None
            return failed(f"HTTP {error.status_code}: {_why(error)}")
        except openai.APIError as error:  # no connection, or no answer in time
            return failed(_why(error))
        except UNUSABLE as error:
            return failed(f"the server's answer cannot be used: {one_line(error)}")

    def _complete(self, request: Request, prompt: str, **options: Any) -> Any:
        pictures = [
            {"type": "image_url", "image_url": {"url": url}} for url in request.pictures
        ]
        turns: Any = messages(pictures, prompt)
        return self._client.chat.completions.create(
            model=self._settings.model, messages=turns, temperature=0.0, **options
        )

    def _caption(self, request: Request) -> Response:
        reply = self._complete(
            request, request.prompt, max_tokens=self._settings.max_new_tokens
        )
        choice = reply.choices[0]
        usage = reply.usage
        return Response(
            choice.message.content or "",
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
        options = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        for prompt in prompts:
            reply = self._complete(request, prompt, **options)
            tokens = reply.choices[0].logprobs and reply.choices[0].logprobs.content
            if not (tokens and tokens[0].top_logprobs):
                raise ValueError(
                    "it has no log-probabilities (top_logprobs), which letters need; use another "
                    "server, or captioner.engine vllm or transformers"
                )
            values: dict[str, list[float]] = {letter: [] for letter in letters}
            named = tokens[0].top_logprobs
            for each in named:
                values.get(each.token.removeprefix(" "), []).append(each.logprob)
            smallest = min(each.logprob for each in named)
            sums = (
                np.logaddexp.reduce(found) if found else smallest
                for found in values.values()
            )
            rows.append(tuple(map(float, sums)))
            first.append(str(tokens[0].token))
        return ChoiceScores(tuple(rows), tuple(first)).as_answer(len(rows))


def _why(error: openai.APIError) -> str:
    cause = error.__cause__
    return one_line(cause if cause is not None and str(cause) else error.message).rstrip(
        "."
    )
