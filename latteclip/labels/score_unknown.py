"""Score how likely each image shows none of the classes, by CLIP's features or by the captioner.

Letters: N images.
"""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.clip.ood import UnknownDetector, threshold
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.class_scores import read_class_scores, unlikeliness
from latteclip.labels.features import read_features

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnknownSettings:
    """The section `unknown`."""

    share: float  # of the training images that are marked unknown


def score_unknown(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: UnknownSettings,
    output: str,
    detector_output: str,
    class_scores_path: str | None = None,
) -> None:
    """Write UNKNOWN for every image of every split, and the detector for new images.

    Where the captioner scored classes of a training image, its scores decide. Labels are not read.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table, for the features of the images.
        class_embeddings_path: W0.
        settings: the section `unknown`.
        output: an UNKNOWN table.
        detector_output: the detector.
        class_scores_path: a CLASS_SCORES table.

    Raises:
        UserError: an input lacks an image or does not belong to the others, or there is no
            training image.
    """
    table, classnames = tables.read_unlabelled(images_path, training=False)
    training = torch.from_numpy(pc.not_equal(table["split"], "test").to_numpy())
    if not training.any():
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    classes, described = load_classifier(class_embeddings_path, classnames=classnames)
    features = read_features(pseudo_labels_path, table["image_id"])
    detector, scores = UnknownDetector.learn(
        features, training, classes.weights, settings.share, described
    )
    unknown = (scores > detector.threshold).numpy()
    detector.save(detector_output)
    metadata = {**described, "threshold": detector.threshold, "share": settings.share}
    by_captioner = np.full(len(table), np.nan, np.float32)
    if class_scores_path is not None:
        ids = table["image_id"].filter(pa.array(training.numpy()))
        _, log_probabilities = read_class_scores(class_scores_path, ids, len(classnames))
        by_captioner[training.numpy()] = unlikeliness(log_probabilities)
    scored = ~np.isnan(by_captioner)
    if scored.any():
        n = int(settings.share * int(training.sum()))
        limit = threshold(torch.from_numpy(by_captioner[scored]), n)
        unknown[scored] = by_captioner[scored] > limit
        metadata["captioner_threshold"] = limit
    columns = {
        "image_id": table["image_id"],
        "score": scores.numpy(),
        "captioner_score": pa.array(by_captioner, pa.float32(), from_pandas=True),
        "is_unknown": unknown,
    }
    tables.write(output, columns, tables.UNKNOWN, metadata)
    log.info(
        "%d of %d images are marked unknown, %d of them by the captioner, which scored %d images. "
        "CLIP marks images that are further from each class text than all but %.1f %% of the "
        "training images.",
        unknown.sum(),
        len(table),
        unknown[scored].sum(),
        scored.sum(),
        100 * settings.share,
    )
