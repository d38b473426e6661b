"""Engines, which answer requests, and what they answer."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from latteclip.captions.questions import Choices, Layout, Request
from latteclip.config.keys import AUTO, CaptionerSection
from latteclip.core.terminal import one_line

LLAVA_NEXT = re.compile(r"llava-(v?1\.6|next)", re.IGNORECASE)
OVERVIEW = 336  # side of the square that LLaVA-1.6 sees of a whole image, pixels
Tokens = Annotated[int, Field(ge=0, lt=2**31)]
# Without halves of characters, which a server may name in JSON and no file takes.
Text = Annotated[
    str, AfterValidator(lambda text: text.encode(errors="ignore").decode())
]


def picture_layout(
    captioner: CaptionerSection, canvas: int | None = None
) -> Layout:
    """Return the layout of a request. Images are scaled down only where they keep their shape."""
    side = captioner.square_side
    if side == AUTO:
        side = OVERVIEW if LLAVA_NEXT.search(captioner.model) else None
    return Layout(
        canvas, None if side or canvas else captioner.max_image_side, side
    )


def at_once(captioner: CaptionerSection, usual: int) -> int:
    """Return how many requests an engine works on at once."""
    return usual if captioner.batch_size == AUTO else int(captioner.batch_size)


@dataclass(frozen=True, config={"strict": True})
class Response:
    """An answer to a request. ValueError: a model or server cannot have written it."""

    text: Text
    # "stop", "length" where max_new_tokens cut it, "scores" or "error".
    finish_reason: Text
    n_tokens: Tokens | None
    n_read: Tokens | None = None  # tokens of the request, pictures included
    error: str | None = None  # why there is no text; such an answer is not cached
    # Whether a server refuses this request, which is no failure.
    is_refused: bool = False


def failed(reason: object, *, is_refused: bool = False) -> Response:
    """Return the answer to a request that could not be answered."""
    return Response(
        "", "error", None, error=one_line(reason), is_refused=is_refused
    )


def scored(
    choices: Choices,
    rows: Sequence[Sequence[float]],
    first: Sequence[str] = (),
    n_tokens: int | None = None,
    n_read: int | None = None,
) -> Response:
    """Return natural log-probabilities of choices as an answer, whose text `scores_of` reads.

    There is a row of likelihoods, or a row for each order of the options. In multiple choice,
    `first` are the most likely first tokens of the orders.
    """
    for token in first:
        if token.removeprefix(" ") not in choices.texts:
            return failed(
                f"the answer begins with {token!r}, which is none of the letters"
            )
    if np.isnan(rows).any() or (
        choices.by_letters and not np.isfinite(rows).all()
    ):
        return failed(
            "the model's log-probabilities are not numbers; set captioner.dtype to bfloat16 or "
            "float32"
        )
    return Response(json.dumps(rows), "scores", n_tokens, n_read)


def scores_of(answer: Response) -> list[list[float]]:
    """Return the log-probabilities of `scored`; perhaps -inf."""
    rows: list[list[float]] = json.loads(answer.text)
    return rows


def messages(
    pictures: Sequence[dict[str, Any]], prompt: str
) -> list[dict[str, Any]]:
    """Return one turn of a user: the pictures, then the text."""
    return [
        {"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}
    ]


class Engine(Protocol):
    """A model that answers greedily, which `make` of its module returns."""

    def answer(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, Response]]:
        """Yield each request with its answer: words, or `scored` choices.

        Answers come in any order, and requests are taken as there is room for them. A request that
        cannot be answered gets an answer with an error.
        """
