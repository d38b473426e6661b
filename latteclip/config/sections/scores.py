"""The section `scores`."""

from typing import Annotated, Literal

from pydantic import Field

from latteclip.config.sections.base import Line, Positive, Section, ShareAboveZero, key


class ScoresSection(Section):
    """The captioner's scores of CLIP's best classes, which are not in the paper."""

    kind: Literal["likelihood", "multiple_choice"] | None = key(
        None,
        "likelihood: of each class's text; multiple_choice: of letters of a list; null: no scores; "
        "multiple_choice takes a capable model and any engine",
    )
    topk: Annotated[int, Field(ge=2)] = key(
        5, "CLIP's best classes to score; all if at most 20"
    )
    answer: Annotated[str, Field(pattern=r"\{\}")] | None = key(
        None,
        "likelihood: text after the prompt, {} is the class; null: a space, {} and a full stop",
    )
    orders: Positive = key(
        2, "multiple_choice: number of random orders in which classes are listed"
    )
    share: ShareAboveZero = key(
        1.0, "share of the images to score, those with the least certain label"
    )
    file: Line | None = key(
        None, "engine file: your scores: image_id, options and log_probabilities"
    )
