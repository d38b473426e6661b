"""A classifier from zero-shot scores and image features alone. Not in the paper."""

import logging

from latteclip.clip.classifier import load_classifier, save_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.adaptation import adapt
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import ClipFeatures

log = logging.getLogger(__name__)


def adapt_zero_shot(
    images_path: str, pseudo_labels_path: str, class_embeddings_path: str, output: str
) -> None:
    """Write the zero-shot classifier, adapted to the training images by `adaptation`."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    classes, described = load_classifier(class_embeddings_path, classnames=classnames)
    scale = described["logit_scale"]
    features = read_features(pseudo_labels_path, table["image_id"])
    images = adapt(ClipFeatures.of(features, classes.weights, scale))
    save_classifier(output, images.classifier(images.adapted, scale), described)
    log.info("Adapted %d classes to %d images.", len(classnames), len(table))
