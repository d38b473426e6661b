"""Accuracy on the test split, and the files of a run with predictions and metrics.

A dataset without a test split has predictions for its training images, and no accuracy.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.tables import ClassesMetadata, IndexMetadata
from latteclip.evaluate.results import FIGURES

log = logging.getLogger(__name__)


def mean_recall(predictions: npt.NDArray[np.int_], labels: npt.NDArray[np.int_]) -> float:
    """Return the mean recall of the classes that have test images."""
    counts = np.bincount(labels)
    hits = np.bincount(labels[predictions == labels], minlength=len(counts))
    is_used = counts > 0
    return float((hits[is_used] / counts[is_used]).mean())


def read_evaluated_images(images_path: str, dataset: str) -> tuple[pa.Table, list[str]]:
    """Read the test split of an IMAGES table, and the C class names.

    Where it is empty, all images are evaluated, without their labels.
    """
    table = tables.read(images_path, tables.IMAGES)
    classnames = tables.read_metadata(images_path, IndexMetadata).classnames
    if len(table) == 0:
        raise UserError(f"Dataset {dataset} has no image; check its split.")
    tests = table.filter(pc.equal(table["split"], "test"))
    if len(tests):
        return tests, classnames
    unlabelled = table.drop_columns([*tables.LABEL_COLUMNS])
    # The columns that are missing become null.
    table = pa.concat_tables([tests, unlabelled], promote_options="default")
    return table, classnames


def write(
    images: pa.Table,
    classnames: Sequence[str],
    ranked: npt.NDArray[np.int_],
    scores: npt.NDArray[np.float32],
    flags: Sequence[str],
    run: tuple[str, str, int],
    predictions_output: str,
    metrics_output: str,
) -> None:
    """Write the predictions of a run, and its metrics where the images have labels.

    Images are those of `read_evaluated_images`, with their best classes, best first, and the scores
    of these, both [N, K]. Flags are keys of `FLAGS`. A run is dataset, method and seed.
    """
    tables.write(
        predictions_output,
        {
            "image_id": images["image_id"],
            "label": images["label"],
            "prediction": ranked[:, 0].astype(np.int32),
            "topk_labels": tables.list_column(ranked.astype(np.int32)),
            "topk_scores": tables.list_column(scores.astype(np.float32)),
        },
        tables.PREDICTIONS,
        ClassesMetadata(list(classnames)),
    )
    names = ("dataset", "method", "seed")
    result: dict[str, object] = dict(zip(names, run, strict=True))
    result |= {"flags": list(flags), "images": len(images)}
    result |= dict.fromkeys(FIGURES)
    if images["label"].null_count:
        log.warning("No labels to test with in %s: predictions only.", run[0])
    else:
        labels = images["label"].to_numpy()
        is_right = ranked == labels[:, None]
        result |= {f"acc{k}": float(is_right[:, :k].any(axis=1).mean()) for k in (1, 5)}
        result["mean_per_class_recall"] = mean_recall(ranked[:, 0], labels)
        log.info("%s, %s, seed %d: acc1 %.4f", *run, result["acc1"])
    write_json(metrics_output, result)
