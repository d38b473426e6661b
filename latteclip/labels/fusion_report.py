"""The report on the labels of a dataset, a file beside their table."""

from dataclasses import dataclass, field
from pathlib import Path

from latteclip.core.files import read_record, write_record
from latteclip.core.terminal import counted
from latteclip.labels.guarantees import MIN_ANSWERS, Interval

NAME = "fused_labels.json"  # the file below the results of a dataset
UNCHECKED = (
    "Nothing checks the confidence of the labels: it is that of the labellers, or of CLIP about "
    "its own images. Answers of latteclip teach about images drawn at random check it."
)


def in_words(right: Interval) -> str:
    """Return a sentence about the share of right labels."""
    return (
        f"{right.words()} of the labels are right, by {counted(right.n, 'answer')} about images "
        "drawn at random (95 % interval)."
    )


@dataclass(frozen=True)
class LabellerReport:
    """A labeller, and what its votes are worth."""

    name: str
    kind: str  # a kind of the key `labellers`, or zero_shot for the class texts
    table: str | None  # its votes, relative to the folder of the report
    votes: int  # images with a vote
    weight: float  # mean weight of a vote in the labels
    # Share of right votes, by answers or else by votes and images. None: unknown
    accuracy: Interval | None
    # Answers about random images from which it would follow, 0 if it is known.
    answers_needed: int


@dataclass(frozen=True)
class Check:
    """Predictions for the J images that check them, each learned without the image's answer."""

    confidence: list[float]  # J
    right: list[bool]  # J, by the answers


@dataclass(frozen=True)
class CheckedLabels:
    """The accuracy of the labels, by answers about J images that were drawn at random."""

    right: Interval  # share of right labels of all images
    image_id: list[str]  # J
    labels: Check
    classifiers: dict[str, Check]  # the keys are the names of their files


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
    def labels_right(self) -> Interval | None:
        """Return the share of right labels. None: too few answers check them."""
        right = self.checked.right if self.checked else None
        return right if right and right.n >= MIN_ANSWERS else None


@dataclass(frozen=True)
class FusionReport:
    """How the labels of a dataset came about."""

    classnames: list[str]
    written_names: dict[str, str]  # names that the dataset writes otherwise
    model: str  # the name of the CLIP model
    pretrained: str | None
    labellers: list[LabellerReport]
    zero_shot: LabellerReport  # the class texts
    votes: str  # in words: captions, class scores, or votes of several labellers
    voting: int  # images with a vote
    reason: str  # why the labels are those of one labeller; "": they are not
    is_checked: bool  # whether images, several labellers or answers support the confidence
    changed: int  # labels that are not the adapted zero-shot ones
    image_encoders: list[str]  # models beside CLIP
    answers: PersonAnswers
    examples: int = 0  # images outside of the dataset, of known classes
    without_evidence: list[str] = field(default_factory=list)  # classes that have no labels

    def sentences(self, n: int) -> list[str]:
        """Return how the labels of N images came about, and what is unusual."""
        sentences = [
            f"{self.voting} of {n} images have {self.votes}.",
            f"{self.changed} labels differ from the adapted zero-shot ones.",
        ]
        if self.reason:
            sentences.append(self.reason)
        if not self.is_checked:
            sentences.append(UNCHECKED)
        if self.without_evidence:
            names = ", ".join(self.without_evidence)
            sentences.append(
                f"No vote, answer or example names {names}, so no image has that label."
            )
        if right := self.answers.labels_right:
            sentences.append(in_words(right))
        return sentences


def write_fusion_report(path: str | Path, report: FusionReport) -> None:
    """Write the report of `fuse_labels` as JSON."""
    write_record(path, report)


def read_fusion_report(path: str | Path) -> FusionReport:
    """Read the report of `fuse_labels`, or raise UserError."""
    return read_record(FusionReport, path)
