"""The section `scores`."""

from typing import Annotated, Literal

from pydantic import Field

from latteclip.config.sections.base import (
    Line,
    Positive,
    Section,
    key,
)


class ScoresSection(Section):
    """The captioner's scores of CLIP's best classes, which are not in the paper."""

    kind: Literal["likelihood", "multiple_choice", "decisions"] | None = key(
        None,
        "multiple_choice: probabilities of the letters of a list, by a capable model; likelihood: "
        "of each class's text; decisions: by a decision model; null: no scores",
    )
    topk: Annotated[int, Field(ge=2)] = key(
        5,
        "CLIP's best classes to score; all classes if they are at most 20, or 254 for decisions",
    )
    answer: Annotated[str, Field(pattern=r"\{\}")] | None = key(
        None,
        "likelihood: text of an answer, {} is the class; null: a space, {} and a full stop",
    )
    max_images: Positive | None = key(
        None, "images to score, at most: those with the least certain label; null: all"
    )
    file: Line | None = key(
        None, "engine file: your scores: image_id, options and log_probabilities"
    )
