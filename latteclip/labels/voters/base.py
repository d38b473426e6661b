"""What a voter is given, and what it returns, with the letters of `fusion`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import torch

from latteclip.config.sections.base import Section
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.labels.label_sources import ClipFeatures, Votes, parts


class FusionSettings(Section):
    """The CLIP model that reads the captions, and how many it encodes at once."""

    clip: ClipSection
    inference: InferenceSection  # its `batch_size`


@dataclass(frozen=True)
class VoterTable:
    """A voter, and the table with its votes."""

    name: str
    kind: str  # a kind of the key `voters`
    module: str  # its module in this package
    table: str
    column: str | None = (
        None  # begin of the names of its columns in FUSED_LABELS, if it has some
    )


@dataclass(frozen=True)
class VotedImages:
    """The N training images about which a voter votes."""

    image_ids: pa.ChunkedArray  # [N]
    images: ClipFeatures
    classes: torch.Tensor  # [C, D] class embeddings
    scale: float  # factor of CLIP's cosines
    settings: FusionSettings
    device: str
    threads: int

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Ballot:
    """The votes of a voter, and its labels by themselves."""

    title: str  # what messages call the votes: "captions"
    votes: Votes
    labels: torch.Tensor  # [N]
    confidence: torch.Tensor  # [N] float32, 0 without a vote
    leaked: bool = False  # whether the voter read the pseudo-labels

    @classmethod
    def of(cls, title: str, votes: Votes) -> Self:
        """Return votes with the classes that they make likeliest."""
        tables = (votes.probabilities(rows) for rows in parts(len(votes.has)))
        return cls(title, votes, *best_labels(tables))


def best_labels(probabilities: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best classes by tables of probabilities, and their probabilities."""
    best = [table.max(dim=1) for table in probabilities]
    confidence, labels = (torch.cat(column) for column in zip(*best, strict=True))
    return labels, confidence.float()
