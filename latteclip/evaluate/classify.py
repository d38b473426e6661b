"""Classify images by a fine-tuned model, for the stages that evaluate one."""

from collections.abc import Sequence

import numpy as np

from latteclip.clip.encode import classify_files
from latteclip.clip.model import FinetunedModel
from latteclip.core import tables
from latteclip.core.holdout import Fold, left_out_images
from latteclip.evaluate.results import (
    HeldOut,
    RunFiles,
    read_evaluated_images,
    write_run,
)


def classify_left_out(
    images_path: str, model: FinetunedModel, fold: Fold, threads: int
) -> tuple[list[str], list[int]]:
    """Return the ids of the images that a training left out, and their classes by its model."""
    images = left_out_images(images_path, fold)
    if not len(images):
        return [], []
    best = classify_files(model, tables.Strings(images["path"]), 1, threads)
    return images["image_id"].to_pylist(), best[:, 0].tolist()


def classify_evaluated(
    images_path: str,
    model: FinetunedModel,
    held_out: HeldOut,
    flags: Sequence[str],
    dataset: str,
    run: RunFiles,
    threads: int,
) -> None:
    """Classify the images of `read_evaluated_images`, and write the files of `write_run`."""
    table, names = read_evaluated_images(images_path)
    ranked = classify_files(
        model, tables.Strings(table["path"]), tables.TOPK, threads
    )
    write_run(table, names, np.asarray(ranked), held_out, flags, dataset, run)
