"""The test split classified by a tuned model, or by the pretrained one.

Letters: N test images, C classes, D embedding width, K best classes kept.
"""

from dataclasses import dataclass

import numpy as np

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate import metrics


@dataclass(frozen=True)
class EvaluateSettings:
    """How test images are classified."""

    batch_size: int
    topk: int
    precision: str = "bf16"


def evaluate(
    images_path: str,
    model: str,
    history_path: str,
    settings: EvaluateSettings,
    run: metrics.Run,
    predictions_output: str,
    metrics_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Classify the test split with a tuned model and its prototypes.

    The marks of the result are those of the training's history.
    """
    from latteclip.clip import model as clips  # here: the zero-shot row needs no torch
    from latteclip.clip.features import encode_files
    from latteclip.clip.ranking import classify
    from latteclip.core import devices

    table, names = metrics.read_test_images(images_path, run.dataset)
    history = tables.read_metadata(history_path, "step")
    classifier, classnames = clips.load_classifier(model)  # [C, D]
    if classnames != names:
        raise UserError(f"{model} was tuned for other classes than {images_path}; rerun its stage.")
    clip = clips.load(f"local-dir:{model}", None, devices.pick(device, threads), settings.precision)
    features = encode_files(clip, table["path"].to_pylist(), settings.batch_size, threads)  # [N, D]
    labels, scores = classify(features, classifier, settings.topk)  # [N, K]
    metrics.write(
        table,
        names,
        labels.numpy(),
        scores.numpy(),
        run,
        history.get("marks", []),
        predictions_output,
        metrics_output,
    )


def evaluate_zero_shot(
    images_path: str,
    pseudo_labels_path: str,
    run: metrics.Run,
    predictions_output: str,
    metrics_output: str,
) -> None:
    """The zero-shot row: the pseudo-labels of the test split are its predictions."""
    table, names = metrics.read_test_images(images_path, run.dataset)
    image_ids = table["image_id"].to_pylist()
    labels, scores = (
        np.array(
            tables.lookup(pseudo_labels_path, tables.PSEUDO_LABELS, "image_id", column, image_ids)
        )
        for column in ("topk_labels", "topk_scores")
    )
    metrics.write(table, names, labels, scores, run, [], predictions_output, metrics_output)
