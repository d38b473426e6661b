"""The section `scores`."""

from typing import Annotated, Literal

from pydantic import Field

from latteclip.config.sections.base import (
    Line,
    MaxCost,
    Positive,
    Section,
    Share,
    ShareAboveZero,
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
    orders: Positive = key(
        2,
        "multiple_choice and decisions: number of random orders in which classes are listed",
    )
    examples: Annotated[int, Field(ge=0, le=1)] = key(
        0,
        "sure images of each of CLIP's best classes (topk, at most 7) that are shown before the "
        "picture, to models that read several pictures",
    )
    none_option: bool = key(True, "decisions: whether 'none of these' is an option")
    share: ShareAboveZero = key(1.0, "share of the images to score")
    choose: Literal["margin", "gain"] = key(
        "margin",
        "which images are scored first if share or max_cost leaves some out; margin: those with "
        "the least certain zero-shot label; gain: those whose label an answer would most likely "
        "change",
    )
    rounds: Positive = key(
        3,
        "choose gain: rounds of equal cost, of which each learns from the answers so far",
    )
    min_gain: Share = key(
        0.002,
        "choose gain: stop after the first round if all further answers are expected to change "
        "fewer labels than this share of the images",
    )
    max_cost: MaxCost | None = key(
        None,
        "limit of the cost of all answers: money such as 0.5, by the server or "
        "captioner.price_input; 200000 tokens; 600 seconds of a run; null: no limit",
    )
    file: Line | None = key(
        None, "engine file: your scores: image_id, options and log_probabilities"
    )
