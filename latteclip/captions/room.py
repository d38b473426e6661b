"""Whether requests fit into what the model reads, known before it starts and an image is decoded.

A few requests are counted with black pictures in the sizes that the image index tells.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from latteclip.captions.engines.base import Count, TooLongError
from latteclip.captions.pictures import Layout, blanks
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)
LOOKED_AT = 8  # requests
MOST = 0.5  # share of them; where more are too long, the run would be in vain
Sizes = tuple[tuple[int, int], ...]  # width and height of the images of a request, in pixels
Measure = Callable[[str, Sizes, Layout], "Length"]


@dataclass(frozen=True)
class Length:
    """How long a request is."""

    pictures: int
    tokens: float  # of each of them, on the average


def check_room(
    count: Count,
    requests: Sequence[tuple[str, Sizes]],
    layout: Layout,
    others: Mapping[str, Layout],
    max_failed: float,
) -> None:
    """Log how many tokens a picture has, and refuse to begin where most requests are too long.

    Args:
        count: of the engine.
        requests: the prompt and the sizes of the images of a few.
        layout: how they are shown.
        others: layouts that may be shorter, by the setting that gives them.
        max_failed: share of requests that may end without an answer.

    Raises:
        UserError: most are too long; it says what would help.
    """
    measure: Measure = functools.cache(functools.partial(_length, count))
    found: list[Length] = []
    too_long: list[tuple[TooLongError, str, Sizes]] = []
    for prompt, sizes in requests:
        try:
            found.append(measure(prompt, sizes, layout))
        except TooLongError as error:
            too_long.append((error, prompt, sizes))
    if found:
        tokens = [round(length.tokens) for length in found]
        log.info("A picture has %s tokens (of %d requests).", _span(tokens), len(found))
    if not too_long:
        return
    first, prompt, sizes = too_long[0]
    remedies = [first.remedy, *_shorter(measure, prompt, sizes, others)]
    message = f"{first}; {' or '.join(remedies)}."
    if len(too_long) > max(MOST, max_failed) * len(requests):
        raise UserError(message)
    log.warning("%d of %d requests: %s", len(too_long), len(requests), message)


def _length(count: Count, prompt: str, sizes: Sizes, layout: Layout) -> Length:
    pictures = blanks(sizes, layout)
    return Length(len(pictures), (count(prompt, pictures) - count(prompt, [])) / len(pictures))


def _shorter(
    measure: Measure, prompt: str, sizes: Sizes, others: Mapping[str, Layout]
) -> Iterator[str]:
    """Which settings give the same in pictures that are short enough."""
    for setting, layout in others.items():
        with contextlib.suppress(TooLongError):
            length = measure(prompt, sizes, layout)
            pictures = "one picture" if length.pictures == 1 else f"{length.pictures} pictures"
            yield f"set {setting} ({pictures} of {length.tokens:,.0f} tokens)"


def _span(values: Sequence[int]) -> str:
    least, most = min(values), max(values)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"
