"""Images classified by a fine-tuned model: the test split, and training images it left out."""

import numpy as np
import pyarrow as pa
import torch

from latteclip.clip import finetuned
from latteclip.config.keys import ClipSection, Section
from latteclip.core import devices, tables
from latteclip.core.holdout import NO_FOLD, Fold, left_out_images
from latteclip.evaluate import metrics, train_predictions
from latteclip.train.settings import TrainingMetadata


class EvaluateSettings(Section):
    """How images are classified."""

    clip: ClipSection  # its `precision`
    fold: Fold = NO_FOLD  # the training images that were not trained on


def evaluate(
    images_path: str,
    model_path: str,
    history_path: str,
    settings: EvaluateSettings,
    *,
    dataset: str,
    method: str,
    seed: int,
    predictions_output: str,
    metrics_output: str,
    train_predictions_output: str,
    left_out_path: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Classify the test split with a fine-tuned model, or all images without a test split.

    The training images that were left out of training are classified as well. For an average, they
    have the classes that its trainings predicted.
    """
    table, names = metrics.read_evaluated_images(images_path, dataset)
    history = tables.read_metadata(history_path, TrainingMetadata)
    where = devices.pick(device, threads)
    model = finetuned.load(model_path, where, settings.clip.precision, classnames=names)

    def rank(images: pa.Table, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best classes of N images and their scores, both [N, K]."""
        return model.classify(tables.Strings(images["path"]), k, threads)

    labels, scores = rank(table, tables.TOPK)
    metrics.write(
        table,
        names,
        ranked=labels.numpy(),
        scores=scores.numpy(),
        flags=history.flags,
        run=(dataset, method, seed),
        predictions_output=predictions_output,
        metrics_output=metrics_output,
    )
    if left_out_path:
        left_out = train_predictions.read_predictions(left_out_path, names)
        predicted = left_out["prediction"].to_numpy()
    else:
        left_out = left_out_images(images_path, settings.fold)
        predicted = np.empty(0, np.int_)
        if len(left_out):
            predicted = rank(left_out, 1)[0][:, 0].numpy()
    train_predictions.write_predictions(
        train_predictions_output, left_out["image_id"], predicted, names
    )
