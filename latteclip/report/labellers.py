"""Who labels the training images of a dataset, and the accuracy of each."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.core import tables
from latteclip.labels.fusion_report import NAME, LabellerReport, read_fusion_report
from latteclip.labels.votes import NO_VOTE

FUSED = "fused"


def read_labellers(folder: Path) -> list[tuple[LabellerReport, float | None]]:
    """Read who labels the images of a dataset's results, the last one all together.

    Each has the share of right votes by the labels of the dataset. None: there are no labels, or no
    votes.
    """
    report = read_fusion_report(folder / NAME)
    columns = ["image_id", "fused_label", "labeller_labels"]
    table = tables.read(folder / "fused_labels.parquet", columns)
    ids, n = table["image_id"], len(table)
    zero_shot = tables.lookup_column(
        folder / "pseudo_labels.parquet", "pseudo_label", ids
    )
    truth = tables.lookup_column(folder / "images.parquet", "label", ids)
    votes = tables.from_list_column(table["labeller_labels"]).T
    labels = [*votes, zero_shot.to_numpy(), table["fused_label"].to_numpy()]
    fused = LabellerReport(FUSED, FUSED, None, n, 1.0, report.labels_right, 0)
    labellers = [*report.labellers, report.zero_shot, fused]
    right = [_share_right(by_one, truth) for by_one in labels]
    return list(zip(labellers, right, strict=True))


def _share_right(
    votes: npt.NDArray[np.int32], truth: pa.ChunkedArray
) -> float | None:
    has_vote = votes != NO_VOTE
    if truth.null_count or not has_vote.any():
        return None
    return float((votes == truth.to_numpy())[has_vote].mean())
