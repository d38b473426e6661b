"""Zero-shot pseudo-labels of N images from a frozen CLIP (LatteCLIP, section 3.1)."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from latteclip.clip.classifier import (
    Classifier,
    Features,
    best_classes,
    parts,
    save_classifier,
)
from latteclip.clip.features import read_features
from latteclip.clip.zero_shot import (
    ZeroShotSettings,
    load_clip,
    zero_shot_classifier,
)
from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata


def pseudo_label_images(
    images_path: str,
    features_path: str,
    settings: ZeroShotSettings,
    output: str,
    class_embeddings_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Write PSEUDO_LABELS for every image of every split by its features, and the classifier W0."""
    table, _ = tables.read_unlabelled(images_path, training=False)
    clip = load_clip(settings.clip, device, threads)
    classifier, described = zero_shot_classifier(clip, images_path, settings)
    features = read_features(features_path, table["image_id"])
    write_pseudo_labels(output, table, features, classifier, described)
    save_classifier(class_embeddings_output, classifier, described)


def write_pseudo_labels(
    output: str,
    table: pa.Table,
    features: Features,
    classifier: Classifier,
    described: Mapping[str, Any],
) -> None:
    """Classify images of a table by their features, and write PSEUDO_LABELS by parts."""
    metadata = ClassesMetadata(described["classnames"])
    with tables.writing(output, tables.PSEUDO_LABELS, metadata) as add:
        for some in parts(len(features)):
            part = features[some]
            scores = part @ classifier.weights.T  # [rows, C]
            labels, _ = best_classes(scores, tables.TOPK)
            shares = (described["logit_scale"] * scores).softmax(dim=1)
            add(
                {
                    "image_id": table["image_id"][some],
                    "pseudo_label": labels[:, 0].numpy(),
                    "confidence": shares.amax(dim=1).numpy(),
                    "topk_labels": labels.tolist(),
                    "image_features": tables.list_column(part.numpy()),
                }
            )
