"""What an engine is given and what it does: writing a text about pictures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from latteclip.captions.answers import Answer
from latteclip.captions.pictures import Layout, alone
from latteclip.captions.requests import Identity, Request, fingerprint

# Tokens of a request: a prompt about pictures. Raises TooLongError.
Count = Callable[[str, Sequence[Image.Image]], int]
OWN = "file"  # the engine that asks nobody: captions that the user brings along


@dataclass(frozen=True)
class CaptionerSettings:
    """What decides a caption, besides the picture and the prompt, and how fast it comes."""

    engine: str  # see `engines.start.CLASSES`
    model: str  # Hugging Face id or folder, or the name under which a server serves it
    revision: str | None
    dtype: str
    max_new_tokens: int
    max_model_len: int
    gpu_memory_utilization: float
    batch_size: int  # requests that the engine works on at once
    quantization: str | None = None  # as vLLM names it; null: what the model's files say
    tensor_parallel_size: int = 1  # GPUs that hold the model together
    max_image_side: int | None = None  # a larger image is scaled down to this, pixels
    square_side: int | None = None  # each picture is scaled to a square of this side, pixels
    concurrency: int = 32  # requests that a server gets at once
    timeout: float = 120.0  # seconds for an answer of a server
    retries: int = 5  # when a server is busy or does not answer
    max_failed: float = 0.05  # share of requests that may end without a caption
    images_file: str | None = None  # of engine file: image_id and caption
    groups_file: str | None = None

    @property
    def layout(self) -> Layout:
        """How an image by itself is shown."""
        return alone(self.max_image_side, self.square_side)

    def identity(self, layout: Layout) -> Identity:
        """What tells apart the answers to equal questions."""
        return Identity(
            model=fingerprint(self.model),
            revision=self.revision,
            dtype=self.dtype,
            quantization=self.quantization,
            max_new_tokens=self.max_new_tokens,
            layout=layout,
        )


class TooLongError(Exception):
    """A request is longer than what the model reads."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy  # what to do


def never() -> bool:
    """The answer for requests that are all there: no waiting."""
    return False


class Captioner(Protocol):
    """A model that answers requests greedily; made of (settings, threads, pictures)."""

    version: str

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer, as answers come.

        Takes requests from `requests` as it has room for them. A request that cannot be answered
        gets an answer that says why.

        Args:
            requests: what is asked.
            would_wait: whether the next request is not there yet, so that an engine with work
                at hand should do that first.
        """
