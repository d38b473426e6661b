"""What the proposal of classes writes: its JSON file, and the columns of its tables.

Letters: D embedding width, T terms of names.
"""

from dataclasses import dataclass

import pyarrow as pa

DISCOVERED = pa.schema(
    {
        "image_id": pa.string(),  # of a training image
        "classname": pa.string(),  # null for none
        "confidence": pa.float32(),  # of its class, by names and looks
        "second": pa.string(),  # the class that is likeliest beside it; null for none
    }
)

LEAVES = pa.schema(
    {
        "images": pa.int64(),
        "looks": pa.list_(pa.float32()),  # [D] the sum over its images
        # The sum of weighted names, of which most of T are 0.
        "name_terms": pa.list_(pa.int32()),
        "name_weights": pa.list_(pa.float32()),
        "reliability": pa.float64(),  # of names, the sum over its images
        # The most frequent terms, and how many of its images have each.
        "terms": pa.list_(pa.string()),
        "counts": pa.list_(pa.int64()),
    }
)
LEAF_MEMBERS = pa.schema(
    {
        "image_id": pa.string(),  # of a training image
        "leaf": pa.int32(),
        "leaves": pa.list_(pa.int32()),  # the likeliest ones
        "probabilities": pa.list_(pa.float32()),
    }
)


@dataclass(frozen=True)
class ProposalMetadata:
    """What is true of all leaves of a proposal."""

    proposal: str  # digest, by which a person's actions know the proposal
    wanted: int | None  # the number of classes by the configuration; None: as suggested
    suggested: int
    terms: int  # T
    without_name: int  # images
    unit: float  # of costs
    into: list[int]  # of each merge, the leaf that stays
    taken: list[int]  # and the leaf that goes into it
    costs: list[float]  # relative
    classes: list[list[int]]  # the leaves of each
    names: list[list[str]]
    shares: list[list[float]]


@dataclass(frozen=True)
class ClassName:
    """A name of a class, and the share of the class's images that have it."""

    name: str
    share: float


@dataclass(frozen=True)
class SimilarClass:
    """A class that looks like another."""

    name: str
    cost: float  # of merging the two, relative


@dataclass(frozen=True)
class ProposedClass:
    """A class after a person's actions."""

    name: str
    images: int
    alike: list[SimilarClass]  # the most similar one first
    names: list[ClassName]  # as proposed, the best first; none of a class that a split made
    kind_of: str | None  # the class whose name ends its name


@dataclass(frozen=True)
class CurvePoint:
    """A merge of two groups of images."""

    classes: int  # before it
    cost: float  # relative


@dataclass(frozen=True)
class DiscoveryRecord:
    """The content of discovery.json."""

    proposal: str  # digest, by which a person's actions know the proposal
    wanted: int | None  # the number of classes by the configuration; None: as suggested
    suggested: int  # the number of classes that the curve suggests
    actions: int  # of a person; 0: nobody has looked
    without_name: int  # images
    classes: list[ProposedClass]
    curve: list[CurvePoint]
