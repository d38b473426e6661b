"""How likely each image belongs to none of the classes, from zero-shot features alone."""

import logging
from dataclasses import dataclass

import pyarrow.compute as pc
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.clip.unknown import UnknownDetector
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.features import read_features

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnknownSettings:
    """The section `unknown`."""

    share: float  # of the training images that are called unknown


def score_unknown(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: UnknownSettings,
    output: str,
    detector_output: str,
) -> None:
    """Write UNKNOWN for every image of every split, and the detector for new images.

    Labels are not read.

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
    unknown = scores > detector.threshold
    detector.save(detector_output)
    columns = {
        "image_id": table["image_id"],
        "score": scores.numpy(),
        "is_unknown": unknown.numpy(),
    }
    told = {**described, "threshold": detector.threshold, "share": settings.share}
    tables.write(output, columns, tables.UNKNOWN, told)
    log.info(
        "%d of %d images are called unknown: those that are further from every class text than "
        "all but %.1f %% of the training images.",
        int(unknown.sum()),
        len(table),
        100 * settings.share,
    )
