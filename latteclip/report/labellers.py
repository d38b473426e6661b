"""Who labels the training images of a dataset, and the accuracy of each."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.core import tables
from latteclip.labels.fusion_report import FusionReport, LabellerReport
from latteclip.labels.votes import NO_VOTE

FUSED = "fused"


def read_labellers(
    report: FusionReport, fused_labels: str, pseudo_labels: str, images: str
) -> list[tuple[LabellerReport, float | None]]:
    """Read who labels the images of a dataset by three tables, the last one all together.

    Each has the share of right votes by the labels of the dataset. None: there are no labels, or no
    votes.
    """
    columns = ["image_id", "fused_label", "labeller_labels"]
    table = tables.read(fused_labels, columns)
    ids, n = table["image_id"], len(table)
    zero_shot = tables.lookup_column(pseudo_labels, "pseudo_label", ids)
    truth = tables.lookup_column(images, "label", ids)
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
