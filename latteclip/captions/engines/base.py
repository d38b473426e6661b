"""Settings and answers of engines, and which engines there are.

An engine is a class in a module of this folder, imported by its name. So an edit of it reruns the
captions and class scores of this engine alone.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from latteclip.captions.pictures import Layout
from latteclip.captions.requests import Answer, Request, failed
from latteclip.config import hub_names

ENGINES = {"vllm": "VllmEngine", "openai": "OpenaiEngine", "transformers": "TransformersEngine"}
FILE = "file"  # in place of an engine: captions and scores that the user brings along
SCORED = "scores"  # finish reason of answers that are scores
Answered = Iterator[tuple[Request, Answer]]
WouldWait = Callable[[], bool]  # whether the next request is not there yet


@dataclass(frozen=True)
class CaptionerSettings:
    """What decides a caption, besides the picture and the prompt, and how fast it comes."""

    engine: str  # of ENGINES, or FILE
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
        """The layout of one image, which is not scaled down before it becomes a square."""
        max_side = None if self.square_side else self.max_image_side
        return Layout(max_side=max_side, square=self.square_side)

    @property
    def loads_model(self) -> bool:
        """Whether the engine loads the model itself; a server is sent pictures as URLs."""
        return self.engine in hub_names.ENGINES


def never() -> bool:
    """Return False, for requests that are all there: an engine need not wait."""
    return False


class Engine(Protocol):
    """A model that answers greedily; built from (settings, threads, pictures, scoring)."""

    version: str

    def answer(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        """Yield each request with its answer: words, or `Scores.as_answer` of its choices.

        Answers come in any order, and requests are taken as there is room for them. A request that
        cannot be answered gets an answer with an error. Where the next request would have to be
        waited for, work at hand comes first.
        """


def start(
    settings: CaptionerSettings, threads: int, pictures: int, *, scoring: bool = False
) -> Engine:
    """Start an engine whose requests show at most so many pictures, with choices if `scoring`."""
    engine_class = getattr(module_of(settings.engine), ENGINES[settings.engine])
    engine: Engine = engine_class(settings, threads, pictures, scoring)
    return engine


def module_of(engine: str) -> Any:
    """Import the module of an engine."""
    return importlib.import_module(f"latteclip.captions.engines.{engine}")


@dataclass(frozen=True)
class Scores:
    """Natural log-probabilities of the choices of a request, in their order.

    A row for each prompt: one of likelihoods, one for each order of the options of multiple choice.
    """

    log_probabilities: tuple[tuple[float, ...], ...]
    first: tuple[str, ...] = ()  # of multiple choice: the most likely first token of each

    def as_answer(self, n_tokens: int) -> Answer:
        """Return the scores as JSON; an error where one of them is not a number."""
        rows = self.log_probabilities
        if any(math.isnan(value) for row in rows for value in row):
            return failed(
                "the model's log-probabilities are not numbers; set captioner.dtype to bfloat16 or "
                "float32"
            )
        # JSON has no word for minus infinity.
        numbers = [[round(v, 6) if math.isfinite(v) else None for v in row] for row in rows]
        text = json.dumps({"log_probabilities": numbers, "first": self.first}, ensure_ascii=False)
        return Answer(text, SCORED, n_tokens)

    @classmethod
    def parse(cls, text: str) -> "Scores":
        """Read the text of an answer."""
        values = json.loads(text)
        rows = ([-math.inf if v is None else v for v in row] for row in values["log_probabilities"])
        return cls(tuple(map(tuple, rows)), tuple(values["first"]))
