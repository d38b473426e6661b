"""What a voter that asks no captioner is given, and the table of votes that it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.config.sections.voter import VoterSection
from latteclip.core import tables
from latteclip.labels.zero_shot import ZeroShotSettings


class VotesSettings(VoterSection):
    """A voter that asks no captioner."""

    zero_shot: ZeroShotSettings | None = None  # a CLIP model that votes


@dataclass
class VoterTableMetadata:
    """The metadata of the votes of a voter that asks no captioner, a CLASS_SCORES table."""

    classnames: list[str]
    voter: str
    kind: str
    source: str  # the user's file, or the model


def columns_of(
    image_ids: Any,
    options: Sequence[Sequence[int]],
    log_probabilities: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """Return the columns of CLASS_SCORES for images, whose options are empty without a vote."""
    columns = {name: [None] * len(options) for name in tables.CLASS_SCORES.names}
    votes = {"options": options, "log_probabilities": log_probabilities}
    return {**columns, "image_id": image_ids, **votes}
