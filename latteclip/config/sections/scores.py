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
        "likelihood: of each class's text; multiple_choice: of letters of a list; decisions: "
        "probabilities by a decision model; null: no scores; multiple_choice takes a capable model "
        "and any engine but decisions",
    )
    topk: Annotated[int, Field(ge=2)] = key(
        5, "CLIP's best classes to score; all if at most 20, of decisions if at most 254"
    )
    answer: Annotated[str, Field(pattern=r"\{\}")] | None = key(
        None,
        "likelihood: text after the prompt, {} is the class; null: a space, {} and a full stop",
    )
    orders: Positive = key(
        2,
        "multiple_choice and decisions: number of random orders in which classes are listed",
    )
    examples: Annotated[int, Field(ge=0, le=1)] = key(
        0,
        "sure images of each of CLIP's best classes (topk, at most 7) that are shown beside the "
        "question, to models that read several pictures: 0 or 1",
    )
    none_option: bool = key(True, "decisions: whether 'none of these' is an option")
    share: ShareAboveZero = key(1.0, "share of the images to score")
    choose: Literal["margin", "gain"] = key(
        "margin",
        "which images are scored first, where share or max_cost leaves some out; margin: those "
        "with the least certain zero-shot label; gain: drawn by what an answer is expected to "
        "bring, by zero-shot scores, image features and captions if there are some",
    )
    rounds: Positive = key(
        3,
        "choose gain: rounds of equal cost; answers of one say which images the next asks about",
    )
    min_gain: Share = key(
        0.002,
        "choose gain: after the first round, nothing more is asked where all further answers "
        "together are expected to change fewer labels than this share of the images",
    )
    max_cost: MaxCost | None = key(
        None,
        "what all answers together may cost: 0.5 is money, as the server or captioner.price_input "
        "counts it; 200000 tokens; 600 seconds, of one run; null: no limit",
    )
    file: Line | None = key(
        None, "engine file: your scores: image_id, options and log_probabilities"
    )
