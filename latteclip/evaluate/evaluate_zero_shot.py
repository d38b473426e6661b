"""The test split classified by the pretrained model: the row that all others are compared with."""

import numpy as np

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
    image_ids = table["image_id"].to_pylist()
    labels, scores = (
        np.array(
            tables.lookup(pseudo_labels_path, tables.PSEUDO_LABELS, "image_id", column, image_ids)
        )
        for column in ("topk_labels", "topk_scores")
    )
    metrics.write(table, names, labels, scores, run, [], outputs)
    apart = judged.judging_images(images_path)["image_id"]
    known = tables.lookup(
        pseudo_labels_path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", apart.to_pylist()
    )
    judged.write_predictions(judged_output, apart, np.array(known, np.int_), names)
