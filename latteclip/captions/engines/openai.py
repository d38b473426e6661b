"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from PIL import Image

from latteclip.captions.answers import Answer
from latteclip.captions.engines.base import CaptionerSettings, TooLongError, never
from latteclip.captions.pictures import data_url
from latteclip.captions.replies import Reply, owner_of, read_reply
from latteclip.captions.requests import Request, messages
from latteclip.core.errors import UserError
from latteclip.core.terminal import KEY, URL, one_line

REFUSED = (401, 403, 404)  # no request will fare better
REDIRECTS = range(300, 400)
TOO_MUCH = tuple(f"HTTP {status}:" for status in (400, 413, 422))  # of one request


class OpenaiCaptioner:
    """Keeps several requests under way at once.

    The client waits and asks again, with growing and jittered pauses or as long as Retry-After
    says, when the server is busy, fails, cannot be reached, or replies what is no answer.
    """

    def __init__(self, settings: CaptionerSettings, threads: int = 1, pictures: int = 1) -> None:
        import openai

        from latteclip.captions import guarded_client

        url, key = _address(), _key()
        self._url = one_line(url)  # for messages
        self._model = settings.model
        self._concurrency = settings.concurrency
        self._max_new_tokens = settings.max_new_tokens
        self._client = openai.OpenAI(
            base_url=url,
            api_key=key,
            max_retries=settings.retries,
            timeout=settings.timeout,
            default_headers={"Accept-Encoding": "identity"},
            http_client=guarded_client.client(settings.timeout),
        )
        self.version = f"openai {self._served()}"

    def _served(self) -> str:
        """Who serves the model, as far as the server says."""
        import httpx2
        import openai

        try:
            reply = self._client.get("/models", cast_to=httpx2.Response)
        except openai.APIStatusError:  # some servers have no list
            return "server"
        except openai.APIError as error:
            if isinstance(error.__cause__, httpx2.RemoteProtocolError):  # it does answer
                return "server"
            raise UserError(
                f"The server at {self._url} ({URL}) does not answer: {_why(error)}."
            ) from None
        owner = owner_of(reply.content, self._model)
        return "server" if owner is None else f"server of {owner}"

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
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
                        waiting[pool.submit(self._ask, request)] = request
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, request: Request) -> Answer:
        reply = self._complete(request, max_tokens=self._max_new_tokens)
        return reply if isinstance(reply, Answer) else reply.answer

    def count(self, prompt: str, pictures: Sequence[Image.Image]) -> int:
        """Tokens of a request, by the server's own count; 0 where it does not tell.

        Raises:
            TooLongError: the server refuses it, in its own words.
            UserError: it does not answer.
        """
        answer = self._ask(Request(0, [data_url(picture) for picture in pictures], prompt))
        if answer.error is None:
            return answer.n_read or 0
        if not answer.error.startswith(TOO_MUCH):
            raise UserError(
                f"The server at {self._url} does not answer ({answer.error}); see that it is there "
                "and has loaded its model."
            )
        raise TooLongError(
            f"The server refuses a request (pictures: {len(pictures)}): {answer.error}",
            "let it take such requests (`vllm serve`: --max-model-len, --limit-mm-per-prompt)",
        )

    def _complete(self, request: Request, **options: Any) -> Reply | Answer:
        """The server's reply, greedy, or an answer that says why there is none."""
        import httpx2
        import openai

        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in request.pictures]
        asked = {
            "model": self._model,
            "messages": messages(pictures, request.prompt),
            "temperature": 0.0,
            **options,
        }
        try:
            reply = self._client.post("/chat/completions", body=asked, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise UserError(
                    f"The server at {self._url} refuses to answer ({_why(error)}); check {KEY} "
                    "and captioner.model."
                ) from None
            if error.status_code in REDIRECTS:
                raise UserError(
                    f"The server at {self._url} sends requests on to another address, where no "
                    f"picture goes; export {URL} with the address that answers."
                ) from None
            return Answer("", "error", None, f"HTTP {error.status_code}: {_why(error)}")
        except openai.APIError as error:  # no connection, or no answer in time
            return Answer("", "error", None, _why(error))
        return read_reply(reply.content)


def _address() -> str:
    """The server's address, which is in the environment.

    Raises:
        UserError: it is missing, or is no address.
    """
    import httpx2

    url = os.environ.get(URL, "")
    if not url:
        raise UserError(
            f"captioner.engine openai needs the server's address in the environment: "
            f"export {URL}=http://host:8000/v1 (and {KEY}, where it wants a key)."
        )
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(
            f"{URL} is {one_line(url)!r}, which is not an address such as http://host:8000/v1."
        )
    return url


def _key() -> str:
    """The API key, which is in the environment; a word that stands for none without it.

    Raises:
        UserError: it cannot be a part of a header.
    """
    key = os.environ.get(KEY) or "none"
    if not re.fullmatch("[!-~]+", key):
        raise UserError(
            f"{KEY} holds a blank, a line break or another character that no key has; export it "
            "anew."
        )
    return key


def _why(error: Any) -> str:
    """Why there is no reply, in a few words."""
    cause = error.__cause__
    return one_line(cause if cause is not None and str(cause) else error.message).rstrip(".")
