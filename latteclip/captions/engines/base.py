"""Engines that write a text about pictures, behind one small protocol."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from latteclip.captions.answers import Answer
from latteclip.captions.request import Identity, Layout, Request, fingerprint
from latteclip.config.model_names import is_folder
from latteclip.core.errors import UserError

ENGINES = ("vllm", "openai", "transformers", "file")


@dataclass(frozen=True)
class CaptionerSettings:
    """What decides a caption, beside the picture and the prompt, and how fast it comes."""

    engine: str  # one of ENGINES
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
    concurrency: int = 32  # requests that a server gets at once
    timeout: float = 120.0  # seconds for an answer of a server
    retries: int = 5  # when a server is busy or does not answer
    max_failed: float = 0.05  # share of requests that may end without a caption
    images_file: str | None = None  # of engine file: image_id and caption
    groups_file: str | None = None

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


def never() -> bool:
    """Of requests that are all there."""
    return False


class Captioner(Protocol):
    """A model that answers requests greedily."""

    version: str

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] = never
    ) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer, as answers come.

        Takes requests from `requests` as it has room for them. A request that cannot be answered
        gets an answer that says why.

        Args:
            would_wait: whether the next request is not there yet, so that an engine which has
                something to do had better do that.
        """


def start(settings: CaptionerSettings, threads: int, pictures: int) -> Captioner:
    """Start the engine that the settings name.

    Args:
        pictures: the most that one request shows.

    Raises:
        UserError: a model that is not there, or an engine that does not start.
    """
    if settings.engine == "vllm":
        from latteclip.captions.engines.vllm import VllmCaptioner

        return VllmCaptioner(settings, threads, pictures)
    if settings.engine == "transformers":
        from latteclip.captions.engines.transformers import TransformersCaptioner

        return TransformersCaptioner(settings, threads)
    from latteclip.captions.engines.openai import OpenaiCaptioner

    return OpenaiCaptioner(settings)


def check(settings: CaptionerSettings) -> None:
    """Refuse, before anything is read, an engine or a model folder that is not there."""
    if settings.engine not in ENGINES:
        raise UserError(f"captioner.engine {settings.engine!r} is none of {', '.join(ENGINES)}.")
    if settings.engine in ("openai", "file"):
        return
    if is_folder(settings.model) and not (Path(settings.model) / "config.json").is_file():
        raise UserError(
            f"Captioner model folder {settings.model} has no config.json; "
            "set captioner.model to a model folder or a Hugging Face id."
        )
