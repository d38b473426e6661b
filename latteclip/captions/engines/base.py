"""Settings and answers of engines, and which engines there are.

An engine is a class in a module of this folder, imported by its name. So an edit of it reruns the
captions and class scores of this engine alone.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latteclip.captions.pictures import Layout, single_layout
from latteclip.captions.requests import Answer, Request, failed
from latteclip.config import hub_names
from latteclip.core.errors import UserError

ENGINES = {"vllm": "VllmEngine", "openai": "OpenaiEngine", "transformers": "TransformersEngine"}
FILE = "file"  # in place of an engine: captions and scores that the user brings along
LIKELIHOOD, MULTIPLE_CHOICE = KINDS = ("likelihood", "multiple_choice")  # of scores
SCORED = "scores"  # finish reason of answers that are scores
ROUNDING = 1e-3  # by which a log-probability may be above zero
LOWEST = -1e300  # of a log-probability that is not minus infinity
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
        return single_layout(self.max_image_side, self.square_side)


def never() -> bool:
    """Return False, for requests that are all there: an engine need not wait."""
    return False


class Engine(Protocol):
    """A model that answers requests greedily; made of (settings, threads, pictures, scoring).

    Both methods yield each request with its answer, as answers come, and take requests as they have
    room for them. A request that cannot be answered gets an answer with an error. Where the next
    request would have to be waited for, work at hand comes first.
    """

    version: str

    def generate(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        """Answer in words."""

    def score(self, requests: Iterable[Request], would_wait: WouldWait = never) -> Answered:
        """Score the choices of each request (`Scores.as_answer`)."""


def start(
    settings: CaptionerSettings, threads: int, pictures: int, *, scoring: bool = False
) -> Engine:
    """Start an engine whose requests show at most so many pictures, for `score` too if `scoring`.

    Raises:
        UserError: a model that is not there, or an engine that does not start.
    """
    is_local = loads_model(settings.engine) and hub_names.is_folder(settings.model)
    if is_local and not (Path(settings.model) / "config.json").is_file():
        raise UserError(
            f"Captioner model folder {settings.model} has no config.json; "
            "set captioner.model to a model folder or a Hugging Face id."
        )
    module = module_of(settings.engine)
    engine: Engine = getattr(module, ENGINES[settings.engine])(settings, threads, pictures, scoring)
    return engine


def module_of(engine: str) -> Any:
    """Import the module of an engine."""
    return importlib.import_module(f"latteclip.captions.engines.{engine}")


def loads_model(engine: str) -> bool:
    """Return whether an engine loads the model itself; a server is sent pictures as URLs."""
    return engine in hub_names.ENGINES


# --- scores --------------------------------------------------------------------------------------


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


def is_log_probability(value: Any) -> bool:
    """Return whether a value is a finite log-probability, but for rounding."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and LOWEST <= value <= ROUNDING


def log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of probabilities that are given as logarithms."""
    largest = max(values, default=-math.inf)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def letter_of(text: str, letters: Sequence[str]) -> str | None:
    """Return the letter that a token is, with or without a space before it; None for others."""
    bare = text.removeprefix(" ")
    return bare if bare in letters else None
