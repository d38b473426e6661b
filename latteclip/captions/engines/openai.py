"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine.

Engines that ask a server have in common that several requests are under way, and how these fail.
"""

import asyncio
import base64
import functools
import io
import itertools
import logging
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import httpx2
import numpy as np
import openai

from latteclip.captions.engine import Response, at_once, failed, messages, scored
from latteclip.captions.questions import Choices, Request
from latteclip.config.keys import CaptionerSection
from latteclip.config.registry import ENGINES
from latteclip.core.errors import Terminated, UserError
from latteclip.core.terminal import one_line

log = logging.getLogger(__name__)
AT_ONCE = 32  # requests
TIMEOUT = 120  # seconds from a request to the end of its reply
MAX_REPLY = 2**24  # bytes of a reply
RETRIES = 5  # where the server is busy, fails or cannot be reached
REFUSED = {*range(300, 400), 401, 402, 403, 404}  # no request will fare better
BAD_REQUEST = {400, 413, 422}  # another picture may fare better
NO_CREDIT = "insufficient_quota"  # code of an error, which OpenAI sends with 429
# Parameters that the reasoning models of OpenAI refuse.
REFUSABLE = {"max_tokens", "temperature"}
# How answers begin that refuse in words, also of models that see no pictures.
REFUSAL = re.compile(
    r"\s*(i(['\u2019]m| am) (sorry|unable to (assist|help|see|view))\b|sorry, |"
    r"i can(['\u2019]t|not) (assist|help|see|view)\b)",
    re.I,
)
TOP_LOGPROBS = 20  # tokens that a server names at most
Parts = list[dict[str, Any]]  # of a message


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
        # Not in the main thread, where asyncio would only log what a signal raises.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get(key, "").strip() or "none",
            max_retries=RETRIES,
            timeout=TIMEOUT,
            http_client=Client(
                follow_redirects=False,  # pictures go to this server alone
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [bound]},
            ),
        )

    def answer(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, Response]]:
        """Yield each request with its answer.

        Where the server refuses all requests, answers that are under way are yielded before the
        error, for they may be paid, and after a signal those that have arrived.
        """
        source = iter(requests)
        n = at_once(self._settings, AT_ONCE)
        waiting: dict[Future[Response], Request] = {}
        refusal: UserError | None = None
        try:
            while True:
                room = 0 if refusal else n - len(waiting)
                for request in itertools.islice(source, room):
                    answering = self._answer(request)
                    future = asyncio.run_coroutine_threadsafe(
                        answering, self._loop
                    )
                    waiting[future] = request
                if not waiting:
                    break
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    try:
                        answer = future.result()
                    except UserError as error:
                        refusal = error
                    else:
                        yield waiting[future], answer
                    del waiting[future]
        except Terminated as ended:
            # Answers that have arrived may be paid too.
            arrived = [one for one in waiting if one.done()]
            left = len(waiting) - len(arrived)
            ended.add_note(
                f"{left} of at most {n} requests were under way, and are asked again."
            )
            for future in arrived:
                if not future.exception():
                    yield waiting[future], future.result()
            raise
        finally:
            for future in waiting:
                future.cancel()
        if refusal:
            raise refusal

    async def _answer(self, request: Request) -> Response:
        """Return an answer, or why there is none. UserError: there is none for any request."""
        try:
            pictures = await asyncio.to_thread(picture_parts, request)
            return await self._reply(request, pictures)
        except openai.APIStatusError as error:
            if error.status_code in REFUSED or error.code == NO_CREDIT:
                raise UserError(
                    f"{self._where} refuses to answer ({why(error)}); check {self._variables}, "
                    "its credit and captioner.model. The answers so far are cached: run again to "
                    "go on."
                ) from None
            return failed(why(error), is_refused=error.status_code in BAD_REQUEST)
        # Of the connection, or of a reply that is no answer.
        except Exception as error:
            return failed(f"{self._where} gives no usable answer: {why(error)}")

    async def _reply(self, request: Request, pictures: Parts) -> Response:
        """Return what the server answers, or raise an error of the SDK or of the reply's form."""
        raise NotImplementedError


_warn = functools.cache(log.warning)  # once, and not for each request


class Client(openai.DefaultAsyncHttpxClient):
    """Ends an exchange after TIMEOUT seconds: the timeouts of HTTPX are of each part."""

    async def send(
        self, request: httpx2.Request, **options: Any
    ) -> httpx2.Response:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await super().send(request, **options)
        except TimeoutError:
            reason = f"no whole reply in {TIMEOUT} seconds"
            _warn(f"{request.url.host} gives {reason}, and is asked again.")
            raise httpx2.ReadTimeout(reason, request=request) from None


async def bound(response: httpx2.Response) -> None:
    """Read a reply of at most MAX_REPLY bytes, and none compressed."""
    encoding = response.headers.get("content-encoding", "identity")
    stream: Any = response.stream
    content = bytearray()
    async for part in stream:
        content += part
        if encoding != "identity" or len(content) > MAX_REPLY:
            # After the SDK's error, it does not ask again at once.
            raise openai.APIConnectionError(
                message=f"the reply is compressed, or has more than {MAX_REPLY} bytes",
                request=response.request,
            )
    await stream.aclose()
    response.stream = httpx2.ByteStream(bytes(content))


def picture_parts(request: Request) -> Parts:
    """Return the pictures of a request as parts of a message, without loss and without metadata."""
    parts = []
    for picture in request.pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1, icc_profile=None)
        url = (
            f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        )
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def why(error: Exception) -> str:
    """Return the reason of an error, as a part of a sentence."""
    return one_line(f"{error} {error.__cause__ or ''}").rstrip(".")


class OpenaiEngine(ServerEngine):
    """Asks for a caption, or for the log-probabilities of the first token."""

    def __init__(self, settings: CaptionerSection, *_: object) -> None:
        super().__init__(settings)
        self._refused = set[str]()

    async def _reply(self, request: Request, pictures: Parts) -> Response:
        if request.choices is None:
            return await self._caption(messages(pictures, request.prompt))
        return await self._score(pictures, request.choices)

    async def _complete(self, turns: Any, length: int, **options: Any) -> Any:
        """Return a reply. Reasoning models refuse parameters that others need."""
        while True:
            wanted = {"temperature": 0.0, "max_tokens": length, **options}
            for name in self._refused & wanted.keys():
                value = wanted.pop(name)
                if name == "max_tokens":
                    wanted["max_completion_tokens"] = value
            try:
                reply: Any = await self._client.chat.completions.create(
                    model=self._settings.model, messages=turns, **wanted
                )
            except openai.BadRequestError as error:
                if error.param not in REFUSABLE or error.param not in wanted:
                    raise
                self._refused.add(error.param)
                continue
            if not reply.choices:  # some services send their errors so
                raise ValueError(getattr(reply, "error", "it has no choices"))
            return reply

    async def _caption(self, turns: Any) -> Response:
        reply = await self._complete(turns, self._settings.max_new_tokens)
        choice = reply.choices[0]
        text = choice.message.content or ""
        is_filtered = choice.finish_reason == "content_filter"
        is_refused = is_filtered or choice.message.refusal
        if REFUSAL.match(text) or (is_refused and not text):
            reason = f"the server refuses or filters the answer {text[:80]!r}"
            return failed(reason, is_refused=True)
        return Response(
            text,
            choice.finish_reason or "unknown",
            getattr(reply.usage, "completion_tokens", None),
            getattr(reply.usage, "prompt_tokens", None),
        )

    async def _score(self, pictures: Parts, choices: Choices) -> Response:
        """Read the letters among the tokens that the server names for the start of its answer.

        A letter that is not among them gets the smallest log-probability that was named, an upper
        bound of its log-probability.
        """
        rows = []
        first = []
        n_read = 0
        for prompt in choices.prompts:
            turns = messages(pictures, prompt)
            reply = await self._complete(
                turns, 1, logprobs=True, top_logprobs=TOP_LOGPROBS
            )
            logprobs = reply.choices[0].logprobs
            if not (
                logprobs and logprobs.content and logprobs.content[0].top_logprobs
            ):
                raise ValueError(
                    "it has no log-probabilities (top_logprobs), which letters need; use another "
                    "server, or captioner.engine vllm or transformers"
                )
            token = logprobs.content[0]
            named = defaultdict(list)
            for each in token.top_logprobs:
                named[each.token.removeprefix(" ")].append(float(each.logprob))
            smallest = min(map(min, named.values()))
            rows.append(
                [
                    float(np.logaddexp.reduce(named.get(letter, [smallest])))
                    for letter in choices.texts
                ]
            )
            first.append(token.token)
            n_read += reply.usage.prompt_tokens if reply.usage else 0
        return scored(choices, rows, first, len(rows), n_read)


make = OpenaiEngine
