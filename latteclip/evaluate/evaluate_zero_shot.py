"""The test split classified by the pretrained model: the row that all others are compared with."""

import pyarrow as pa

from latteclip.core import tables
from latteclip.evaluate import judged, metrics


def evaluate_zero_shot(
    images_path: str,
    pseudo_labels_path: str,
    run: metrics.Run,
    outputs: metrics.Outputs,
    judged_output: str,
) -> None:
    """Take the pseudo-labels of the test split, without one those of all images, for predictions.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table.
        run: what is evaluated.
        outputs: where the results are written.
        judged_output: where the pseudo-labels of images that judge are written.
    """
    table, names = metrics.read_evaluated_images(images_path, run.dataset)
    labels, scores = (
        tables.from_list_column(_zero_shot(pseudo_labels_path, table["image_id"], column))
        for column in ("topk_labels", "topk_scores")
    )
    metrics.write(table, names, labels, scores, run, [], outputs)
    apart = judged.judging_images(images_path)["image_id"]
    known = _zero_shot(pseudo_labels_path, apart, "pseudo_label")
    judged.write_predictions(judged_output, apart, known.to_numpy(), names)


def _zero_shot(path: str, image_ids: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """A column of a PSEUDO_LABELS table for these images."""
    return tables.lookup_column(path, tables.PSEUDO_LABELS, "image_id", column, image_ids)
