"""Classifiers from zero-shot scores and image features alone. Not in the paper.

Outside its training domain CLIP predicts some classes too often and others hardly ever. The
calibrated classifier subtracts from each class its mean score over the unlabelled training images.
"""

import logging

from latteclip.clip.classifier import Classifier, load_classifier, save_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.features import read_features
from latteclip.labels.fusion import prototypes_by_zero_shot
from latteclip.labels.label_sources import CalibratedFeatures

log = logging.getLogger(__name__)


def calibrate_zero_shot(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    output: str,
    prototypes_output: str,
) -> None:
    """Write two classifiers: the calibrated class texts, and image prototypes by their labels."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    classes, described = load_classifier(class_embeddings_path, classnames=classnames)
    scale = described["logit_scale"]
    features = read_features(pseudo_labels_path, table["image_id"])
    images = CalibratedFeatures.of(features, classes.weights, scale)
    bias = -(classes.weights.double() @ images.mean)
    save_classifier(output, Classifier.of(classes.weights, bias), described)
    weights = prototypes_by_zero_shot(images)
    save_classifier(prototypes_output, images.classifier(weights, scale), described)
    log.info("Calibrated %d classes on %d images.", len(classnames), len(table))
