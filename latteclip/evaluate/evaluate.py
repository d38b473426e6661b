"""Images classified by a tuned model: the test split, and training images that the page shows.

Letters: N images, C classes, K best classes kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latteclip.clip import finetuned
from latteclip.clip.classifier import classify
from latteclip.clip.encode import encode_files
from latteclip.core import devices, tables
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.evaluate import gallery_images, judged, metrics


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
    pseudo_labels: str  # by which the page chooses the training images that it shows
    model: str
    history: str  # of the training, whose marks are those of the result
    left_out: str | None = None  # a JUDGED table of an average, whose trainings predicted it


def evaluate(
    files: EvaluateFiles,
    settings: EvaluateSettings,
    run: metrics.Run,
    outputs: metrics.Outputs,
    gallery_output: str,
    judged_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Classify the test split with a tuned model and its prototypes; without one, all images.

    The training images that were left out of training and those of the page are classified as well.
    Of an average, the left-out images have the classes that its trainings predicted.

    Raises:
        UserError: an input is missing or does not fit the others, or there is no image.
    """
    table, names = metrics.read_evaluated_images(files.images, run.dataset)
    shown = gallery_images.read_shown(files.images, files.pseudo_labels)
    history = tables.read_metadata(files.history, "step")
    where = devices.pick(device, threads)
    model = finetuned.load(files.model, where, settings.precision, classnames=names)

    def ranked(paths: Sequence[str], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best classes of N image files and their scores, both [N, K]."""
        features = encode_files(model.clip, paths, settings.batch_size, threads)
        return classify(features, model.classifier, k)

    labels, scores = ranked(tables.Strings(table["path"]), settings.topk)
    metrics.write(
        table, names, labels.numpy(), scores.numpy(), run, history.get("marks", []), outputs
    )
    if files.left_out:
        apart, _ = tables.read(files.left_out, judged.JUDGED)
        unseen = apart["prediction"].to_numpy()
    else:
        apart = judged.left_out_images(files.images, settings.fold)
        unseen = np.empty(0, np.int_)
        if len(apart):
            unseen = ranked(tables.Strings(apart["path"]), 1)[0][:, 0].numpy()
    judged.write_predictions(judged_output, apart["image_id"], unseen, names)
    predictions, _ = ranked(shown["path"].to_pylist(), 1)
    gallery_images.write_predictions(
        gallery_output, shown["image_id"], predictions[:, 0].numpy(), names
    )
