"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine.

Engines that ask a server have in common that several requests are under way, and how these fail.
"""

import base64
import io
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx2
import numpy as np
import openai

from latteclip.captions.engine import Response, at_once, failed, messages, scored
from latteclip.captions.questions import Choices, Request
from latteclip.config.keys import CaptionerSection
from latteclip.config.registry import ENGINES
from latteclip.core.errors import UserError
from latteclip.core.terminal import FOR_RUN, one_line

log = logging.getLogger(__name__)
AT_ONCE = 32  # requests
TIMEOUT = 120  # seconds to wait for the beginning of an answer, and again for its end
MAX_REPLY = 2**24  # bytes of a reply
RETRIES = 5  # where the server is busy, fails or cannot be reached
REFUSED = {*range(300, 400), 401, 402, 403, 404}  # no request will fare better
BAD_REQUEST = {400, 413, 422}  # another picture may fare better
NO_CREDIT = "insufficient_quota"  # code of an error, which OpenAI sends with 429
# Parameters that the reasoning models of OpenAI refuse.
REFUSABLE = {"max_tokens", "temperature"}
TOP_LOGPROBS = 20  # tokens that a server names at most


class ServerEngine:
    """Keeps several requests under way at once.

    The SDK waits and asks again, with growing and jittered pauses or as long as Retry-After says,
    when the server is busy, fails or cannot be reached.
    """

    def __init__(self, settings: CaptionerSection) -> None:
        record = ENGINES[settings.engine]
        address, key = str(record.address), str(record.key)
        url = os.environ.get(address)
        if not url:
            raise UserError(
                f"Engine {settings.engine} needs a server: export {address}=https://host/v1."
            )
        self._where = f"The server at {one_line(url)} ({address})"
        self._variables = f"{address}, {key}"
        self._settings = settings
        self.prices = list[float]()  # of the requests whose reply has a price
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(key, "").strip() or "none",
            max_retries=RETRIES,
            timeout=TIMEOUT,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # pictures go to this server alone
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [bound]},
            ),
        )

    def answer(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Response]]:
        """Yield each request with its answer.

        Where the server refuses all requests, answers that are under way are yielded before the
        error, for they may be paid.
        """
        source = iter(requests)
        n = at_once(self._settings, AT_ONCE)
        waiting: dict[Future[Response], Request] = {}
        refusal: UserError | None = None
        pool = ThreadPoolExecutor(n)
        try:
            while True:
                room = 0 if refusal else n - len(waiting)
                for request in itertools.islice(source, room):
                    waiting[pool.submit(self._answer, request)] = request
                if not waiting:
                    break
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    request = waiting.pop(future)
                    try:
                        answer = future.result()
                    except UserError as error:
                        refusal = error
                    else:
                        yield request, answer
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if self.prices:
                price = sum(self.prices)
                self.prices.clear()  # requests that are asked again are answered later
                log.info("The server says that this cost %.4g.", price, extra=FOR_RUN)
        if refusal:
            raise refusal

    def _answer(self, request: Request) -> Response:
        """Return an answer, or why there is none. UserError: there is none for any request."""
        try:
            return self._reply(request)
        except openai.APIStatusError as error:
            if error.status_code in REFUSED or error.code == NO_CREDIT:
                raise UserError(
                    f"{self._where} refuses to answer ({why(error)}); check {self._variables}, "
                    "its credit and captioner.model. The answers so far are cached: run again to "
                    "go on."
                ) from None
            return failed(why(error), is_refused=error.status_code in BAD_REQUEST)
        except openai.APIError as error:  # no connection, or no answer in time
            return failed(f"{self._where} does not answer: {why(error)}")
        except Exception as error:  # the reply lacks what it must have
            return failed(f"the server's answer cannot be used: {error}")

    def _reply(self, request: Request) -> Response:
        """Return what the server answers, or raise an error of the SDK or of the reply's form."""
        raise NotImplementedError


def bound(response: httpx2.Response) -> None:
    """Read a reply of at most MAX_REPLY bytes in at most TIMEOUT seconds, and none compressed."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise _unreadable(response, f"is compressed ({encoding}), which nobody asked for")
    stream: Any = response.stream
    end = time.monotonic() + TIMEOUT
    content = bytearray()
    for part in stream:
        content += part
        if len(content) > MAX_REPLY:
            raise _unreadable(response, f"has more than {MAX_REPLY} bytes")
        if time.monotonic() > end:
            raise _unreadable(response, f"takes more than {TIMEOUT} seconds")
    stream.close()
    response.stream = httpx2.ByteStream(bytes(content))


def _unreadable(response: httpx2.Response, reason: str) -> openai.APIConnectionError:
    """Return the SDK's error for a reply, after which it does not ask again at once."""
    request = response.request
    return openai.APIConnectionError(message=f"the reply {reason}", request=request)


def picture_parts(request: Request) -> list[dict[str, Any]]:
    """Return the pictures of a request as parts of a message, without loss and without metadata."""
    parts = []
    for picture in request.pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1, icc_profile=None)
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def why(error: openai.APIError) -> str:
    """Return the reason of an error, as a part of a sentence."""
    return one_line(f"{error} {error.__cause__ or ''}").rstrip(".")


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
                reply: Any = self._client.chat.completions.create(
                    model=self._settings.model, messages=turns, **wanted
                )
            except openai.BadRequestError as error:
                if error.param not in REFUSABLE or error.param not in wanted:
                    raise
                self._refused.add(error.param)
                continue
            if not reply.choices:  # some services send their errors so
                raise ValueError(getattr(reply, "error", "it has no choices"))
            price = getattr(reply.usage, "cost", None)  # of OpenRouter and others
            if isinstance(price, float):
                self.prices.append(price)
            return reply

    def _caption(self, request: Request) -> Response:
        reply = self._complete(request, request.prompt, self._settings.max_new_tokens)
        choice = reply.choices[0]
        text = choice.message.content or ""
        is_filtered = choice.finish_reason == "content_filter"
        if not text and (is_filtered or choice.message.refusal):
            return failed("the server refuses or filters the answer", is_refused=True)
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
