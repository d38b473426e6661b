"""The test split classified by the pretrained model: the row that all others are compared with."""

import numpy as np

from latteclip.core import tables
from latteclip.evaluate import held_out, metrics


def evaluate_zero_shot(
    images_path: str,
    pseudo_labels_path: str,
    share: float,
    run: metrics.Run,
    outputs: metrics.Outputs,
    held_out_output: str,
) -> None:
    """Take the pseudo-labels of the test split for its predictions.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table.
        share: of the training images that were held out, whose pseudo-labels are written as well.
        run: what is evaluated.
        outputs: where the results are written.
        held_out_output: where the HELD_OUT table is written.
    """
    table, names = metrics.read_test_images(images_path, run.dataset)
    image_ids = table["image_id"].to_pylist()
    labels, scores = (
        np.array(
            tables.lookup(pseudo_labels_path, tables.PSEUDO_LABELS, "image_id", column, image_ids)
        )
        for column in ("topk_labels", "topk_scores")
    )
    metrics.write(table, names, labels, scores, run, [], outputs)
    apart = held_out.read_held_out_images(images_path, share)
    unseen = tables.lookup(
        pseudo_labels_path,
        tables.PSEUDO_LABELS,
        "image_id",
        "pseudo_label",
        apart["image_id"].to_pylist(),
    )
    held_out.write_predictions(held_out_output, apart, np.array(unseen, np.int_), names)
