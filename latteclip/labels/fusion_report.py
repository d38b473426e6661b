"""The report on the labels of a dataset, a file beside their table."""

from dataclasses import dataclass
from pathlib import Path

from latteclip.core.files import read_record
from latteclip.labels.guarantees import Interval

NAME = "fused_labels.json"  # the file below the results of a dataset
LABELS = "labels"  # key of the check of the labels
# Of each image that checks labels or a classifier, which learned without the image's answer: the
# confidence, and whether the class is right by the answer.
Check = list[tuple[float, bool]]


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


def read_fusion_report(path: str | Path) -> FusionReport:
    """Read the report of `fuse_labels`, or raise UserError."""
    return read_record(FusionReport, path)
