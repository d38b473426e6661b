"""The report on fused labels, a file beside their table: votes, weights, and a person's answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latteclip.core.files import read_record, write_record

NAME = "fused_labels.json"  # the file below the results of a dataset


@dataclass(frozen=True)
class Corroboration:
    """The test that votes fit images and zero-shot scores better than permuted votes do."""

    images: float  # the statistic by image prototypes
    zero_shot: float  # the statistic by zero-shot scores
    p_value: float


@dataclass(frozen=True)
class Weights:
    """The weights of the predictors in the labels."""

    zero_shot: float
    images: float
    texts: float  # weight of the prototypes of captions


@dataclass(frozen=True)
class Gains:
    """The nats per vote by which predictors make the votes likelier than class frequencies do."""

    both: float
    zero_shot: float
    images: float


@dataclass(frozen=True)
class EncoderReport:
    """What an image encoder beside CLIP is worth to the labels."""

    model: str
    weight: float
    gain: float  # nats per vote, as in `Gains`
    agreement: float  # the statistic of its test
    p_value: float


@dataclass(frozen=True)
class VoterEstimate:
    """How right a voter is where it votes."""

    value: float | None
    low: float
    high: float
    tells: bool  # whether the interval can be relied upon
    source: str  # "answers" or "votes"
    votes: int
    # Answers about images drawn at random that would tell; 0 where the estimate tells.
    answers_needed: int
    by_images: float | None = None  # the estimate by images alone


@dataclass(frozen=True)
class VoterReport:
    """A voter, and what its votes are worth."""

    name: str
    kind: str  # a kind of the key `voters`
    module: str  # a module of latteclip/labels/voters
    table: str  # beside the report, or below its folder
    votes: int  # images with a vote
    weight: float | None  # mean weight of a vote; None: its votes carry no information
    family: int | None  # voters of one family share errors
    # Share of all images whose label it is expected to correct, beside all other voters.
    gain: float
    estimate: VoterEstimate


@dataclass(frozen=True)
class Check:
    """Predictions for the J images that check them, each learned without the image's answer."""

    confidence: list[float]  # J
    right: list[bool]  # J, by the answers
    # [J, C] of all classes, by classifiers; J empty lists for labels
    probabilities: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class CheckedLabels:
    """How right the labels are, by answers about J images that were drawn at random."""

    answers: int  # J
    value: float  # share of right labels of all images, with its 95 % interval
    low: float
    high: float
    image_id: list[str]  # J
    labels: Check
    classifiers: dict[str, Check]  # the keys are the names of their files

    @property
    def sentence(self) -> str:
        """Return how right the labels are, in words."""
        value, low, high = (100 * share for share in (self.value, self.low, self.high))
        return (
            f"checked by {self.answers} answers of yours: {value:.1f} % right, 95 % interval "
            f"{low:.1f} to {high:.1f}"
        )


@dataclass(frozen=True)
class PersonAnswers:
    """The answers of a person from which the labels learned."""

    # Class names; None: no class.
    images: dict[str, str | None] = field(default_factory=dict)
    checked: CheckedLabels | None = None

    @property
    def checking(self) -> list[str]:
        """Return the images that were drawn at random, whose answers check the labels."""
        return self.checked.image_id if self.checked else []

    @property
    def n_teaching(self) -> int:
        """Return how many answered images were chosen to teach, and not drawn at random."""
        return len(self.images) - len(self.checking)


@dataclass(frozen=True)
class FusionReport:
    """How the labels of a dataset came about."""

    classnames: list[str]
    written_names: dict[str, str]  # names that the dataset writes otherwise
    model: str  # the name of the CLIP model
    pretrained: str | None
    voters: list[VoterReport]
    zero_shot: VoterEstimate | None  # how right zero-shot scores are; None: there are none
    votes: str  # what votes: captions, or class scores
    voting: int  # images with a vote
    agreement: float  # share of the votes that are the adapted zero-shot label
    corroborated: bool  # whether the votes count
    corroboration: Corroboration
    weights: Weights
    explained_share: float  # share of the votes that the predictors explain
    independence: float  # how many times predictors count beside a vote
    gains: Gains | None  # None where the votes do not count
    changed: int  # labels that are not the adapted zero-shot ones
    image_encoders: list[EncoderReport]
    answers: PersonAnswers
    examples: int = 0  # images outside of the dataset, of known classes
    # Voters that do not count: nothing tells how right they are.
    uncounted: list[str] = field(default_factory=list)


def why_uncounted(names: Sequence[str]) -> str:
    """Return in words why some voters do not count in the labels."""
    return (
        f"Votes of {', '.join(names)} do not count in the labels: nothing tells how right they "
        "are, and they seem to be worse or to repeat the errors of others. Answers of latteclip "
        "teach about images drawn at random would tell."
    )


def write_fusion_report(path: str | Path, report: FusionReport) -> None:
    """Write the report of `fuse_labels` as JSON."""
    write_record(path, report)


def read_fusion_report(path: str | Path) -> FusionReport:
    """Read the report of `fuse_labels`, or raise UserError."""
    return read_record(FusionReport, path)
