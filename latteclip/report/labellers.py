"""Who labels the training images of a dataset, and the accuracy of each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.core import tables
from latteclip.core.terminal import counted
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.labels.guarantees import Interval
from latteclip.labels.votes import NO_VOTE, ZERO_SHOT

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
    ids = table["image_id"]

    def column(file: str, name: str) -> pa.ChunkedArray:
        return tables.lookup_column(folder / file, name, ids)

    zero_shot = column("pseudo_labels.parquet", "pseudo_label")
    truth = column("images.parquet", "label")
    names = [one.name for one in report.labellers]
    votes = tables.from_list_column(table["labeller_labels"]).T
    labels = dict(zip(names, votes, strict=True))
    labels |= {ZERO_SHOT: zero_shot.to_numpy(), FUSED: table["fused_label"].to_numpy()}
    found = []
    for one in (*report.labellers, report.zero_shot):
        accuracy = _in_words(one.accuracy, one.answers_needed)
        right = _share_right(labels[one.name], truth)
        found.append(Labeller(one.name, one.kind, one.votes / len(ids), accuracy, right))
    accuracy = _in_words(report.labels_right)
    right = _share_right(labels[FUSED], truth)
    return [*found, Labeller(FUSED, FUSED, 1.0, accuracy, right)]


def _share_right(votes: npt.NDArray[np.int32], truth: pa.ChunkedArray) -> float | None:
    has_vote = votes != NO_VOTE
    if truth.null_count or not has_vote.any():
        return None
    return float((votes == truth.to_numpy())[has_vote].mean())


def _in_words(accuracy: Interval | None, answers_needed: int = 0) -> str:
    """Return the accuracy of a labeller, or what would determine it."""
    if accuracy is None and answers_needed:
        needed = counted(answers_needed, "answer")
        return f"unknown; {needed} about random images would estimate it"
    if accuracy is None:
        return "unknown without answers"
    return f"{accuracy.words()}, by {'answers' if accuracy.n else 'votes and images'}"
