"""Which images a captioner is asked about where `max_images` leaves some out. Not in the paper.

Letters: N training images, C classes, K best classes of an image.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.captions.groups import Selection
from latteclip.clip.classifier import ROWS, Classifier, classify, load_classifier
from latteclip.core import tables
from latteclip.core.hashing import digest
from latteclip.labels.answers import UNSURE, teaching_schema


def select(
    images_path: str,
    max_images: int | None,
    pseudo_labels_path: str | None = None,
    classifier_path: str | None = None,
    answers_path: str | None = None,
) -> Selection | None:
    """Return the selection of `max_images` training images, None where that is None.

    Images with the least certain label by the classifier come first. Without a classifier, the
    order is random. Every shard reads the whole dataset, so that shards agree.
    """
    if max_images is None:
        return None
    table, classnames = tables.read_unlabelled(images_path, training=True)
    ids = table["image_id"]
    if classifier_path is None or pseudo_labels_path is None:
        names = ids.to_pylist()
        order = np.array(sorted(range(len(names)), key=lambda i: digest("ask", names[i])))
    else:
        classifier, _ = load_classifier(classifier_path, classnames=classnames)
        _, margins = best_classes(pseudo_labels_path, ids, classifier, 1)
        order = np.argsort(margins, kind="stable")
    is_answered = np.zeros(len(ids), bool)
    if answers_path is not None and Path(answers_path).is_file():
        saved = teaching_schema("the dataset", classnames, table).read(Path(answers_path))
        known = [one.image_id for one in saved.answers.values() if one.kind != UNSURE]
        is_answered |= pc.is_in(ids, pa.array(known, pa.string())).to_numpy()
    return Selection(max_images, order, is_answered)


def best_classes(
    pseudo_labels_path: str, image_ids: pa.ChunkedArray, classifier: Classifier, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the K best classes int32 [N, K] of N images, and how much better the first is [N]."""
    ids = []
    classes = []
    margins = []
    columns = ["image_id", "image_features"]
    for piece in tables.read_pieces(
        pseudo_labels_path, tables.PSEUDO_LABELS, columns, ROWS
    ):
        features = torch.from_numpy(tables.from_list_column(piece["image_features"]).copy())
        best, scores = classify(features, classifier, max(k, 2))
        ids += piece["image_id"].chunks
        classes.append(best[:, :k].int().numpy())
        margins.append((scores[:, 0] - scores[:, 1]).numpy())
    rows = tables.find_rows(image_ids, pa.chunked_array(ids), pseudo_labels_path)
    return np.concatenate(classes)[rows], np.concatenate(margins)[rows]
