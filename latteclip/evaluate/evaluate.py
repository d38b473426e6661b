"""Images classified by a fine-tuned model: the test split, and some training images.

Letters: N images, K best classes.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from latteclip.clip import finetuned
from latteclip.clip.classifier import classify
from latteclip.clip.encode import encode_files
from latteclip.core import devices, tables
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.evaluate import metrics, train_predictions


@dataclass(frozen=True)
class EvaluateSettings:
    """How images are classified."""

    batch_size: int
    topk: int
    precision: str = "bf16"
    fold: Fold = NO_FOLD  # the training images that were not trained on


@dataclass(frozen=True)
class EvaluateFiles:
    """What an evaluation reads."""

    images: str
    pseudo_labels: str  # by which the page's training images are chosen
    model: str
    history: str  # of the training, with the marks of the result
    left_out: str | None = None  # TRAIN_PREDICTIONS of an average, by its trainings


def evaluate(
    files: EvaluateFiles,
    settings: EvaluateSettings,
    run: metrics.Run,
    outputs: metrics.Outputs,
    train_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Classify the test split with a fine-tuned model; without a test split, all images.

    The training images that were left out of training and those of the page are classified as well.
    For an average, the left-out images have the classes that its trainings predicted.

    Raises:
        UserError: an input is missing or does not fit the others, or there is no image.
    """
    table, names = metrics.read_evaluated_images(files.images, run.dataset)
    examples = train_predictions.example_images(files.images, files.pseudo_labels)
    history = tables.read_metadata(files.history, "step")
    where = devices.pick(device, threads)
    model = finetuned.load(files.model, where, settings.precision, classnames=names)

    def rank(images: pa.Table, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best classes of N images and their scores, both [N, K]."""
        paths = tables.Strings(images["path"])
        features = encode_files(model.clip, paths, settings.batch_size, threads)
        return classify(features, model.classifier, k)

    labels, scores = rank(table, settings.topk)
    metrics.write(
        table, names, labels.numpy(), scores.numpy(), run, history.get("marks", []), outputs
    )
    if files.left_out:
        held_out = train_predictions.read_predictions(files.left_out, names, held_out=True)
        unseen = held_out["prediction"].to_numpy()
    else:
        held_out = train_predictions.held_out_images(files.images, settings.fold)
        unseen = rank(held_out, 1)[0][:, 0].numpy() if len(held_out) else np.empty(0, np.int_)
    shown = rank(examples, 1)[0][:, 0].numpy()
    train_predictions.write_predictions(
        train_output, (held_out["image_id"], unseen), (examples["image_id"], shown), names
    )
