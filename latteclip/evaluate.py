"""Accuracy of a classifier on the test split.

Letters: N test images, C classes, D embedding width, K best classes kept.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip import tables
from latteclip.errors import UserError
from latteclip.files import write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What was evaluated."""

    dataset: str
    method: str
    seed: int


@dataclass(frozen=True)
class EvaluateSettings:
    """How test images are classified."""

    batch_size: int
    topk: int


def evaluate(
    images_path: str,
    model: str,
    settings: EvaluateSettings,
    run: Run,
    predictions_output: str,
    metrics_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Classify the test split with a tuned model and its prototypes."""
    from latteclip import clip as clips  # here: the zero-shot row needs no torch
    from latteclip import devices
    from latteclip.features import best_classes, encode_files

    table, metadata = tables.read(images_path, tables.IMAGES)
    table = table.filter(pc.equal(table["split"], "test"))
    classifier, classnames = clips.load_classifier(model)  # [C, D]
    if classnames != metadata["classnames"]:
        raise UserError(f"{model} was tuned for other classes than {images_path}; rerun its stage.")
    clip = clips.load(f"local-dir:{model}", None, devices.pick(device, threads))
    features = encode_files(clip, table["path"].to_pylist(), settings.batch_size, threads)  # [N, D]
    labels, scores = best_classes(features @ classifier.T, settings.topk)  # [N, K]
    _write(
        table, labels.numpy(), scores.numpy(), classnames, run, predictions_output, metrics_output
    )


def evaluate_zero_shot(
    images_path: str,
    pseudo_labels_path: str,
    run: Run,
    predictions_output: str,
    metrics_output: str,
) -> None:
    """The zero-shot row: the pseudo-labels of the test split are its predictions."""
    table, metadata = tables.read(images_path, tables.IMAGES)
    table = table.filter(pc.equal(table["split"], "test"))
    image_ids = table["image_id"].to_pylist()
    labels, scores = (
        np.array(
            tables.lookup(pseudo_labels_path, tables.PSEUDO_LABELS, "image_id", column, image_ids)
        )
        for column in ("topk_labels", "topk_scores")
    )
    _write(table, labels, scores, metadata["classnames"], run, predictions_output, metrics_output)


def accuracy(ranked: npt.NDArray[np.int_], labels: npt.NDArray[np.int_], k: int) -> float:
    """Share of the N images whose label is among the first k of its ranked classes [N, K]."""
    return float((ranked[:, :k] == labels[:, None]).any(axis=1).mean())


def recalls(
    predictions: npt.NDArray[np.int_], labels: npt.NDArray[np.int_], n_classes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int_]]:
    """Recall of each class [C], NaN for a class without test images, and its images [C]."""
    counts = np.bincount(labels, minlength=n_classes)
    hits = np.bincount(labels[predictions == labels], minlength=n_classes)
    return np.divide(hits, counts, out=np.full(n_classes, np.nan), where=counts > 0), counts


def metrics(
    ranked: npt.NDArray[np.int_], labels: npt.NDArray[np.int_], classnames: Sequence[str]
) -> dict[str, object]:
    """acc1, acc5 and mean_per_class_recall as fractions, and the per-class table."""
    recall, counts = recalls(ranked[:, 0], labels, len(classnames))
    return {
        "acc1": accuracy(ranked, labels, 1),
        "acc5": accuracy(ranked, labels, 5),
        "mean_per_class_recall": float(np.nanmean(recall)),
        "per_class": [
            {"classname": name, "images": int(n), "recall": None if n == 0 else float(value)}
            for name, n, value in zip(classnames, counts, recall, strict=True)
        ],
    }


def _write(
    table: pa.Table,
    ranked: npt.NDArray[np.int_],
    scores: npt.NDArray[np.float32],
    classnames: Sequence[str],
    run: Run,
    predictions_output: str,
    metrics_output: str,
) -> None:
    if len(table) == 0:
        raise UserError(f"Dataset {run.dataset} has no test image; check its split.")
    tables.write(
        predictions_output,
        {
            "image_id": table["image_id"],
            "label": table["label"],
            "prediction": ranked[:, 0].astype(np.int32),
            "topk_labels": ranked.tolist(),
            "topk_scores": scores.tolist(),
        },
        tables.PREDICTIONS,
        {"classnames": list(classnames)},
    )
    result: dict[str, object] = {
        "dataset": run.dataset,
        "method": run.method,
        "seed": run.seed,
        "images": len(table),
    }
    labels = table["label"]
    if labels.null_count:
        log.warning("No labels for the test split of %s: predictions only.", run.dataset)
        result |= {"acc1": None, "acc5": None, "mean_per_class_recall": None, "per_class": []}
    else:
        result |= metrics(ranked, labels.to_numpy(), classnames)
        log.info("%s, %s, seed %d: acc1 %.4f", run.dataset, run.method, run.seed, result["acc1"])
    write_json(metrics_output, result)
