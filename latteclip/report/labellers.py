"""Who labels the training images of a dataset, and the accuracy of each."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latteclip.core import tables
from latteclip.core.terminal import counted
from latteclip.labels.fusion_report import (
    NAME,
    LabellerReport,
    read_fusion_report,
)
from latteclip.labels.guarantees import MIN_ANSWERS, Interval
from latteclip.labels.votes import NO_VOTE, ZERO_SHOT

Labels = npt.NDArray[np.int32]
FUSED = "fused"


@dataclass(frozen=True)
class Labeller:
    """What labels training images: a labeller, zero-shot CLIP, or all together."""

    name: str
    kind: str
    coverage: float  # share of the images that it has a vote about
    accuracy: Interval | None  # share of right votes; None: unknown
    answers_needed: int = 0  # answers about random images that would determine it
    right: float | None = None  # share of right votes; None: the dataset has no labels


@dataclass(frozen=True)
class Labellers:
    """All that labels the training images of a dataset."""

    images: int
    answers: int  # answers of a person about images drawn at random
    labellers: list[Labeller]
    reason: str  # why the labels are those of one labeller; "": they are not
    # Shares of the images with votes of both on which two labellers agree, in their order; None:
    # there is no such image.
    agreement: list[list[float | None]]


def read_labellers(folder: Path) -> Labellers:
    """Read who labels the images of a dataset's results."""
    report = read_fusion_report(folder / NAME)
    columns = ["image_id", "fused_label", "labeller_labels"]
    table = tables.read(folder / "fused_labels.parquet", tables.FUSED_LABELS, columns)
    ids = table["image_id"]
    zero_shot = tables.lookup_column(
        folder / "pseudo_labels.parquet",
        tables.PSEUDO_LABELS,
        "image_id",
        "pseudo_label",
        ids,
    )
    names = [one.name for one in report.labellers]
    by_labeller = tables.from_list_column(table["labeller_labels"]).T
    labels = dict(zip(names, by_labeller, strict=True))
    labels |= {ZERO_SHOT: zero_shot.to_numpy(), FUSED: table["fused_label"].to_numpy()}
    rows = [_labeller(one, len(ids)) for one in report.labellers]
    checked = report.answers.checked
    right = checked.right if checked and checked.right.n >= MIN_ANSWERS else None
    rows += [
        _labeller(report.zero_shot, len(ids)),
        Labeller(FUSED, FUSED, 1.0, right),
    ]
    truth = tables.lookup_column(
        folder / "images.parquet", tables.IMAGES, "image_id", "label", ids
    )
    if not truth.null_count:
        true = truth.to_numpy()
        rows = [replace(row, right=_agreement(labels[row.name], true)) for row in rows]
    return Labellers(
        images=len(ids),
        answers=checked.right.n if checked else 0,
        labellers=rows,
        reason=report.reason,
        agreement=[[_agreement(a, b) for b in labels.values()] for a in labels.values()],
    )


def _labeller(one: LabellerReport, n_images: int) -> Labeller:
    coverage = one.votes / n_images
    return Labeller(one.name, one.kind, coverage, one.accuracy, one.answers_needed)


def _agreement(first: Labels, second: Labels) -> float | None:
    both = (first != NO_VOTE) & (second != NO_VOTE)
    return float((first == second)[both].mean()) if both.any() else None


def in_words(labeller: Labeller) -> str:
    """Return the accuracy of a labeller, or what would determine it."""
    accuracy = labeller.accuracy
    needed = counted(labeller.answers_needed, "answer")
    if accuracy is None and labeller.answers_needed:
        return f"unknown; {needed} about random images would estimate it"
    if accuracy is None:
        return "unknown without answers"
    value, low, high = (100 * x for x in (accuracy.value, accuracy.low, accuracy.high))
    by = "answers" if accuracy.n else "votes and images"
    return f"{value:.1f} % ({low:.1f} to {high:.1f}), by {by}"
