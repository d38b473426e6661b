"""The report on the labels of a dataset, a file beside their table."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latteclip.core.files import read_record
from latteclip.core.terminal import counted
from latteclip.labels.guarantees import Interval

NAME = "fused_labels.json"  # the file below the results of a dataset
LABELS = "labels"  # key of the check of the labels
UNCHECKED = (
    "Nothing checks the confidence of the labels: labellers and images may err alike. Twenty "
    "answers of latteclip teach check it."
)
# Of each image that checks labels or a classifier, which learned without the image's answer: the
# confidence, and whether the class is right by the answer.
Check = list[tuple[float, bool]]


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

    @property
    def accuracy_in_words(self) -> str:
        """Return the accuracy, or what would determine it."""
        if self.accuracy:
            source = "answers" if self.accuracy.n else "votes and images"
            return f"{self.accuracy.words()}, by {source}"
        if not self.answers_needed:
            return "unknown without answers"
        needed = counted(self.answers_needed, "answer")
        return (
            f"unknown; {needed} about random images would estimate it to 5 points"
        )


@dataclass(frozen=True)
class FusionReport:
    """How the labels of a dataset came about."""

    classnames: list[str]
    labellers: list[LabellerReport]
    zero_shot: LabellerReport  # the class texts
    reason: str  # why the labels are those of one labeller; "": they are not
    # Whether answers, or the accuracy of a labeller, check the confidence.
    is_checked: bool
    # Features beside CLIP's, relative to the folder of the report.
    image_encoders: list[str]
    examples: int  # images outside of the dataset, of known classes
    # Classes that have no labels.
    without_evidence: list[str]
    # A person's answers: the classes of images; None: no class.
    answers: dict[str, str | None]
    # J answered images that were drawn at random, which check the labels.
    checking: list[str]
    # J of the labels, and of each classifier by the name of its file.
    checks: dict[str, Check]
    # Share of right labels of all images. None: too few answers check them
    labels_right: Interval | None

    def sentences(self) -> Iterator[str]:
        """Yield what is unusual about the labels, and their accuracy."""
        if self.reason:
            yield self.reason
        if not self.is_checked:
            yield UNCHECKED
        if self.without_evidence:
            names = ", ".join(self.without_evidence)
            yield f"No vote, answer or example names {names}, so no image has that label."
        if self.labels_right:
            yield in_words(self.labels_right)


def read_fusion_report(path: str | Path) -> FusionReport:
    """Read the report of `fuse_labels`, or raise UserError."""
    return read_record(FusionReport, path)
