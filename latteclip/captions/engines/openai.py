"""Any server that speaks OpenAI's chat completions, such as `vllm serve` on another machine."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from PIL import Image

from latteclip.captions.answers import Answer
from latteclip.captions.engines.base import CaptionerSettings, TooLongError, never
from latteclip.captions.pictures import data_url
from latteclip.captions.request import Request, messages
from latteclip.core.errors import UserError

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
REFUSED = (401, 403, 404)  # no request will fare better


class OpenaiCaptioner:
    """Keeps several requests under way at once.

    The client waits and asks again, with growing and jittered pauses or as long as Retry-After
    says, when the server is busy, fails or cannot be reached.
    """

    def __init__(self, settings: CaptionerSettings, threads: int = 1, pictures: int = 1) -> None:
        import openai

        self._url = os.environ.get(URL, "")
        if not self._url:
            raise UserError(
                f"captioner.engine openai needs the server's address in the environment: "
                f"export {URL}=http://host:8000/v1 (and {KEY}, where it wants a key)."
            )
        self._model = settings.model
        self._concurrency = settings.concurrency
        self._max_new_tokens = settings.max_new_tokens
        self._client = openai.OpenAI(
            base_url=self._url,
            api_key=os.environ.get(KEY) or "none",
            max_retries=settings.retries,
            timeout=settings.timeout,
        )
        self.version = f"openai {self._served()}"

    def _served(self) -> str:
        """Who serves the model, as far as the server says."""
        import openai

        try:
            owners = {model.id: model.owned_by for model in self._client.models.list()}
        except openai.APIStatusError:  # some servers have no list
            return "server"
        except openai.APIError as error:
            raise UserError(f"The server at {self._url} ({URL}) does not answer: {error}") from None
        return f"server of {owners[self._model]}" if self._model in owners else "server"

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
        completion = self._complete(request, max_tokens=self._max_new_tokens)
        if isinstance(completion, Answer):
            return completion
        choice, usage = completion.choices[0], completion.usage
        return Answer(
            choice.message.content or "",
            choice.finish_reason or "unknown",
            usage.completion_tokens if usage else None,
            n_read=usage.prompt_tokens if usage else None,
        )

    def count(self, prompt: str, pictures: Sequence[Image.Image]) -> int:
        """Tokens of a request, by the server's own count; 0 where it does not tell.

        Raises:
            TooLongError: the server refuses it, in its own words.
        """
        answer = self._ask(Request(0, [data_url(picture) for picture in pictures], prompt))
        if answer.error is not None:
            raise TooLongError(
                f"The server refuses a request (pictures: {len(pictures)}): {answer.error}",
                "let it take such requests (`vllm serve`: --max-model-len, --limit-mm-per-prompt)",
            )
        return answer.n_read or 0

    def _complete(self, request: Request, **options: Any) -> Any:
        """The server's completion, greedy, or an answer that says why there is none."""
        import openai

        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in request.pictures]
        conversation: Any = messages(pictures, request.prompt)
        try:
            completion = self._client.chat.completions.create(
                model=self._model, messages=conversation, temperature=0.0, **options
            )
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise UserError(
                    f"The server at {self._url} refuses to answer ({error}); check {KEY} and "
                    "captioner.model."
                ) from None
            return Answer("", "error", None, f"HTTP {error.status_code}: {error.message}")
        except openai.APIError as error:  # no connection, or no answer in time
            return Answer("", "error", None, f"{type(error).__name__}: {error.message}")
        if not completion.choices:
            return Answer("", "error", None, "the server's answer holds no choice")
        return completion
