"""Engines, which answer requests, and what they answer."""

import importlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from latteclip.captions.pictures import Layout
from latteclip.captions.questions import Request
from latteclip.config.keys import AUTO, CaptionerSection
from latteclip.config.registry import ENGINES

LLAVA_NEXT = re.compile(r"llava-(v?1\.6|next)", re.IGNORECASE)
OVERVIEW = 336  # side of the square that LLaVA-1.6 sees of a whole image, pixels


def square(captioner: CaptionerSection) -> int | None:
    """Return the side of the square to which images are scaled, or None: they keep their shape."""
    if captioner.square_side == AUTO:
        return OVERVIEW if LLAVA_NEXT.search(captioner.model) else None
    return captioner.square_side


def picture_layout(captioner: CaptionerSection) -> Layout:
    """Return the layout of one image, which is not scaled down before it becomes a square."""
    side = square(captioner)
    return Layout(max_side=None if side else captioner.max_image_side, square=side)


def at_once(captioner: CaptionerSection, usual: int) -> int:
    """Return how many requests an engine works on at once."""
    return usual if captioner.batch_size == AUTO else int(captioner.batch_size)


def loads_model(captioner: CaptionerSection) -> bool:
    """Return whether this process loads the model; a server is sent pictures as URLs."""
    return ENGINES[captioner.engine].loads_model


@dataclass(frozen=True)
class Response:
    """An answer to a request, as the model wrote it."""

    text: str
    finish_reason: str  # "stop", "length" where max_new_tokens cut it, "scores" or "error"
    n_tokens: int | None
    error: str | None = None  # why there is no text; such an answer is not cached
    n_read: int | None = None  # tokens of the request, pictures included
    engine: str = ""  # name of the engine, of a cached answer
    date: str = ""  # date of a cached answer, UTC
    digest: str | None = None  # digest of the request; None where nothing was asked
    is_refused: bool = False  # whether a server refuses this request, which is no failure


def failed(error: str, *, is_refused: bool = False) -> Response:
    """Return the answer to a request that could not be answered."""
    return Response("", "error", None, error, is_refused=is_refused)


@dataclass(frozen=True)
class ChoiceScores:
    """Natural log-probabilities of the choices of a request, in their order.

    A row for each prompt: one of likelihoods, one for each order of the options.
    """

    log_probabilities: tuple[tuple[float, ...], ...]
    # In multiple choice, the most likely first token of each order; of decisions the choice.
    first: tuple[str, ...] = ()

    def as_answer(self, n_tokens: int | None, n_read: int | None = None) -> Response:
        """Return the scores as JSON; an error where one of them is not a number."""
        rows = self.log_probabilities
        if any(math.isnan(value) for row in rows for value in row):
            return failed(
                "the model's log-probabilities are not numbers; set captioner.dtype to bfloat16 or "
                "float32"
            )
        # JSON has no word for minus infinity.
        numbers = [list(map(_as_json_number, row)) for row in rows]
        text = json.dumps(
            {"log_probabilities": numbers, "first": self.first}, ensure_ascii=False
        )
        return Response(text, "scores", n_tokens, n_read=n_read)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of an answer."""
        values = json.loads(text)
        rows = []
        for row in values["log_probabilities"]:
            rows.append(tuple(-math.inf if value is None else value for value in row))
        return cls(tuple(rows), tuple(values["first"]))


def _as_json_number(value: float) -> float | None:
    """Return a number with six digits after the point, or None for an infinite one."""
    return round(value, 6) if math.isfinite(value) else None


def messages(pictures: Sequence[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """Return one turn of a user: the pictures, then the text."""
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}]


class Engine(Protocol):
    """A model that answers greedily, which `make` of its module returns."""

    version: str

    def answer(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Response]]:
        """Yield each request with its answer: words, or `ChoiceScores.as_answer` of its choices.

        Answers come in any order, and requests are taken as there is room for them. A request that
        cannot be answered gets an answer with an error.
        """


def start(captioner: CaptionerSection, threads: int, *, scoring: bool = False) -> Engine:
    """Start an engine, whose requests have choices if `scoring`."""
    engine: Engine = module_of(captioner.engine).make(captioner, threads, scoring)
    return engine


def module_of(engine: str) -> Any:
    """Import the module of an engine by its name: its edit reruns this engine's stages alone."""
    return importlib.import_module(f"latteclip.captions.engines.{engine}")
