"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import openai

from latteclip.captions.engines.base import (
    Answered,
    CaptionerSettings,
    Scores,
    WouldWait,
    is_log_probability,
    letter_of,
    log_sum,
    never,
)
from latteclip.captions.requests import Answer, Request, failed, messages
from latteclip.core.errors import UserError
from latteclip.core.terminal import KEY, URL, one_line

REFUSED = (401, 403, 404)  # no request will fare better
REDIRECTS = range(300, 400)
MAX_OWNER = 64  # characters of who serves a model
TOP_LOGPROBS = 20  # tokens that a server names at most
# Raised where a reply, as the SDK parsed it, lacks what it must have.
UNUSABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


class OpenaiEngine:
    """Keeps several requests under way at once.

    The SDK waits and asks again, with growing and jittered pauses or as long as Retry-After says,
    when the server is busy, fails or cannot be reached.
    """

    def __init__(self, settings: CaptionerSettings, *_: object) -> None:
        url = os.environ.get(URL)
        if not url:
            raise UserError(
                f"captioner.engine openai needs the server's address in the environment: "
                f"export {URL}=http://host:8000/v1 (and {KEY}, where it wants a key)."
            )
        self._where = f"The server at {one_line(url)} ({URL})"
        self._model = settings.model
        self._concurrency = settings.concurrency
        self._max_new_tokens = settings.max_new_tokens
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY, "").strip() or "none",
            max_retries=settings.retries,
            timeout=settings.timeout,
            # Pictures go to this server alone.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self.version = f"openai {self._served_by()}"

    def _served_by(self) -> str:
        try:
            models = self._client.models.list().data
            owner = next(model.owned_by for model in models if model.id == self._model)
        except (openai.APIStatusError, *UNUSABLE, StopIteration):  # some servers have no list
            return "server"
        except openai.APIError as error:
            raise UserError(f"{self._where} does not answer: {_why(error)}.") from None
        return f"server of {one_line(owner, MAX_OWNER)}" if owner else "server"

    def generate(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        return self._answered(requests, self._generate)

    def score(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        return self._answered(requests, self._score)

    def _answered(self, requests: Iterable[Request], ask: Callable[[Request], Answer]) -> Answered:
        source = iter(requests)
        waiting: dict[Future[Answer], Request] = {}
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            more = True
            while more or waiting:
                while more and len(waiting) < self._concurrency:
                    request = next(source, None)
                    if request is None:
                        more = False
                    else:
                        waiting[pool.submit(self._explained, ask, request)] = request
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _explained(self, ask: Callable[[Request], Answer], request: Request) -> Answer:
        """Return an answer, or why there is none.

        Raises:
            UserError: there is none for any request.
        """
        try:
            return ask(request)
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise UserError(
                    f"{self._where} refuses to answer ({_why(error)}); check {KEY} and "
                    "captioner.model."
                ) from None
            if error.status_code in REDIRECTS:
                raise UserError(
                    f"{self._where} redirects requests to another address, to which no picture is "
                    f"sent; export {URL} with the address that answers."
                ) from None
            return failed(f"HTTP {error.status_code}: {_why(error)}")
        except openai.APIError as error:  # no connection, or no answer in time
            return failed(_why(error))
        except UNUSABLE as error:
            return failed(f"the server's answer cannot be used: {one_line(error)}")

    def _complete(self, request: Request, **options: Any) -> Any:
        """Return the server's completion of a request, which is greedy."""
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in request.pictures]
        turns: Any = messages(pictures, request.prompt)
        return self._client.chat.completions.create(
            model=self._model, messages=turns, temperature=0.0, **options
        )

    def _generate(self, request: Request) -> Answer:
        reply = self._complete(request, max_tokens=self._max_new_tokens)
        choice, usage = reply.choices[0], reply.usage
        return Answer(
            choice.message.content or "",
            choice.finish_reason or "unknown",
            None if usage is None else usage.completion_tokens,
            n_read=None if usage is None else usage.prompt_tokens,
        )

    def _score(self, request: Request) -> Answer:
        """Read the letters among the tokens that the server names for the start of its answer.

        A letter that is not among them gets the smallest log-probability that was named, an upper
        bound of its log-probability.
        """
        letters, rows, first = request.wanted.texts, [], []
        for prompt in request.wanted.prompts:
            asked = dataclasses.replace(request, prompt=prompt)
            reply = self._complete(asked, max_tokens=1, logprobs=True, top_logprobs=TOP_LOGPROBS)
            tokens = reply.choices[0].logprobs and reply.choices[0].logprobs.content
            if not (tokens and tokens[0].top_logprobs):
                return failed(
                    "the reply has no log-probabilities (top_logprobs), which letters need; use "
                    "another server, or captioner.engine vllm or transformers"
                )
            values: dict[str, list[float]] = {letter: [] for letter in letters}
            named = tokens[0].top_logprobs
            for each in named:
                if not is_log_probability(each.logprob):
                    return failed(f"the logprob of a token is {one_line(each.logprob, 40)}")
                if letter := letter_of(each.token, letters):
                    values[letter].append(each.logprob)
            smallest = min(each.logprob for each in named)
            rows.append(tuple(log_sum(found) if found else smallest for found in values.values()))
            first.append(str(tokens[0].token))
        return Scores(tuple(rows), tuple(first)).as_answer(len(rows))


def _why(error: openai.APIError) -> str:
    cause = error.__cause__
    return one_line(cause if cause is not None and str(cause) else error.message).rstrip(".")
