"""Who labels the training images of a dataset, and the accuracy of each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.terminal import counted
from latteclip.labels.fusion_report import NAME, LabellerReport, read_fusion_report
from latteclip.labels.guarantees import Interval
from latteclip.labels.votes import NO_VOTE

FUSED = "fused"


@dataclass(frozen=True)
class Labeller:
    """What labels training images: a labeller, zero-shot CLIP, or all together."""

    name: str
    kind: str
    coverage: float  # share of the images that it has a vote about
    accuracy: str  # share of right votes, in words
    right: float | None  # the same by the labels of the dataset; None: it has none


def read_labellers(folder: Path) -> list[Labeller]:
    """Read who labels the images of a dataset's results."""
    report = read_fusion_report(folder / NAME)
    columns = ["image_id", "fused_label", "labeller_labels"]
    table = tables.read(folder / "fused_labels.parquet", columns)
    ids, n = table["image_id"], len(table)
    pseudo_labels, images = (
        folder / "pseudo_labels.parquet",
        folder / "images.parquet",
    )
    zero_shot = tables.lookup_column(pseudo_labels, "pseudo_label", ids)
    truth = tables.lookup_column(images, "label", ids)
    votes = tables.from_list_column(table["labeller_labels"]).T
    labels = [*votes, zero_shot.to_numpy(), table["fused_label"].to_numpy()]
    fused = LabellerReport(FUSED, FUSED, None, n, 1.0, report.labels_right, 0)
    return [
        Labeller(
            one.name,
            one.kind,
            one.votes / n,
            _in_words(one.accuracy, one.answers_needed),
            _share_right(by_one, truth),
        )
        for one, by_one in zip(
            [*report.labellers, report.zero_shot, fused], labels, strict=True
        )
    ]


def _share_right(
    votes: npt.NDArray[np.int32], truth: pa.ChunkedArray
) -> float | None:
    has_vote = votes != NO_VOTE
    if truth.null_count or not has_vote.any():
        return None
    return float((votes == truth.to_numpy())[has_vote].mean())


def _in_words(accuracy: Interval | None, answers_needed: int) -> str:
    """Return the accuracy of a labeller, or what would determine it."""
    if accuracy is None and answers_needed:
        needed = counted(answers_needed, "answer")
        return (
            f"unknown; {needed} about random images would estimate it to 5 points"
        )
    if accuracy is None:
        return "unknown without answers"
    return (
        f"{accuracy.words()}, by {'answers' if accuracy.n else 'votes and images'}"
    )
