"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from latteclip.captions.answer_cache import Answer, failed
from latteclip.captions.engines.base import (
    CaptionerSettings,
    Scores,
    is_log_probability,
    letter_of,
    log_sum,
    never,
)
from latteclip.captions.requests import Request, choices_of, messages
from latteclip.core.errors import UserError
from latteclip.core.terminal import KEY, URL, one_line

REFUSED = (401, 403, 404)  # no request will fare better
REDIRECTS = range(300, 400)
MAX_OWNER = 64  # characters of who serves a model
TOP_LOGPROBS = 20  # tokens that a server names at most
# Raised where a reply, as the SDK parsed it, lacks what it must have.
UNUSABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


class NoReplyError(Exception):
    """The server does not answer a request."""


class OpenaiEngine:
    """Keeps several requests under way at once.

    The SDK waits and asks again, with growing and jittered pauses or as long as Retry-After says,
    when the server is busy, fails or cannot be reached.
    """

    def __init__(
        self,
        settings: CaptionerSettings,
        threads: int = 1,
        pictures: int = 1,
        scoring: bool = False,
    ) -> None:
        import openai

        url, key = _address(), _key()
        self._url = one_line(url)  # for messages
        self._model = settings.model
        self._concurrency = settings.concurrency
        self._max_new_tokens = settings.max_new_tokens
        self._has_logprobs = False  # whether any reply had log-probabilities
        self._client = openai.OpenAI(
            base_url=url,
            api_key=key,
            max_retries=settings.retries,
            timeout=settings.timeout,
            # Pictures go to this server alone.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self.version = f"openai {self._served_by()}"

    def _served_by(self) -> str:
        """Return who serves the model, as far as the server says."""
        import openai

        try:
            models = self._client.models.list().data
            owner = next(model.owned_by for model in models if model.id == self._model)
        except openai.APIStatusError:  # some servers have no list
            return "server"
        except openai.APIError as error:
            raise UserError(
                f"The server at {self._url} ({URL}) does not answer: {_why(error)}."
            ) from None
        except (*UNUSABLE, StopIteration):
            return "server"
        return f"server of {one_line(owner, MAX_OWNER)}" if owner else "server"

    def generate(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with its answer; see `Engine`."""
        return self._answered(requests, self._generate)

    def score(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with the scores of its letters; see `Engine`."""
        return self._answered(requests, self._score)

    def _answered(
        self, requests: Iterable[Request], ask: Callable[[Request], Answer]
    ) -> Iterator[tuple[Request, Answer]]:
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
                        waiting[pool.submit(_checked, ask, request)] = request
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

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
        letters, rows, first = choices_of(request).texts, [], []
        for prompt in choices_of(request).prompts:
            asked = dataclasses.replace(request, prompt=prompt)
            reply = self._complete(asked, max_tokens=1, logprobs=True, top_logprobs=TOP_LOGPROBS)
            place = self._first_token(reply.choices[0])
            if place is None:
                return failed("the reply has no log-probabilities")
            values: dict[str, list[float]] = {letter: [] for letter in letters}
            for named in place.top_logprobs:
                if not is_log_probability(named.logprob):
                    return failed(f"the logprob of a token is {one_line(named.logprob, 40)}")
                if letter := letter_of(named.token, letters):
                    values[letter].append(named.logprob)
            smallest = min(named.logprob for named in place.top_logprobs)
            rows.append(tuple(log_sum(found) if found else smallest for found in values.values()))
            first.append(str(place.token))
        return Scores(tuple(rows), tuple(first)).as_answer(len(rows))

    def _first_token(self, choice: Any) -> Any:
        """Return the log-probabilities of the first token of an answer; None without any.

        Raises:
            UserError: no reply so far had log-probabilities.
        """
        content: Sequence[Any] = (choice.logprobs and choice.logprobs.content) or []
        if content and content[0].top_logprobs:
            self._has_logprobs = True
            return content[0]
        if self._has_logprobs:
            return None
        raise UserError(
            f"The server at {self._url} ({URL}) returns no log-probabilities (top_logprobs), which "
            "letters need; use another server, or captioner.engine vllm or transformers."
        )

    def _complete(self, request: Request, **options: Any) -> Any:
        """Return the server's completion of a request, which is greedy.

        Raises:
            NoReplyError: there is none for this request.
            UserError: there is none for any.
        """
        import openai

        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in request.pictures]
        turns: Any = messages(pictures, request.prompt)
        try:
            return self._client.chat.completions.create(
                model=self._model, messages=turns, temperature=0.0, **options
            )
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise UserError(
                    f"The server at {self._url} refuses to answer ({_why(error)}); check {KEY} "
                    "and captioner.model."
                ) from None
            if error.status_code in REDIRECTS:
                raise UserError(
                    f"The server at {self._url} redirects requests to another address, to which no "
                    f"picture is sent; export {URL} with the address that answers."
                ) from None
            raise NoReplyError(f"HTTP {error.status_code}: {_why(error)}") from None
        except openai.APIError as error:  # no connection, or no answer in time
            raise NoReplyError(_why(error)) from None


def _checked(ask: Callable[[Request], Answer], request: Request) -> Answer:
    """Return an answer, or why there is none."""
    try:
        return ask(request)
    except NoReplyError as error:
        return failed(str(error))
    except UNUSABLE as error:
        return failed(f"the server's answer cannot be used: {one_line(error)}")


def _address() -> str:
    """Return the server's address, which is in the environment.

    Raises:
        UserError: it is missing, or is no address.
    """
    url = os.environ.get(URL, "")
    if not url:
        raise UserError(
            f"captioner.engine openai needs the server's address in the environment: "
            f"export {URL}=http://host:8000/v1 (and {KEY}, where it wants a key)."
        )
    if not re.match("https?://[^/:]", url):
        raise UserError(
            f"{URL} is {one_line(url)!r}, which is not an address such as http://host:8000/v1."
        )
    return url


def _key() -> str:
    """Return the API key, which is in the environment; "none" without it.

    Raises:
        UserError: it cannot be a part of a header.
    """
    key = os.environ.get(KEY) or "none"
    if not re.fullmatch("[!-~]+", key):
        raise UserError(
            f"{KEY} holds a blank, a line break or another character that no key has; export it "
            "again."
        )
    return key


def _why(error: Any) -> str:
    """Return why there is no reply, in a few words."""
    cause = error.__cause__
    return one_line(cause if cause is not None and str(cause) else error.message).rstrip(".")
