"""Zero-shot pseudo-labels of N images from a frozen CLIP (LatteCLIP, section 3.1)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from latteclip.clip import model as clips
from latteclip.clip.classifier import (
    Classifier,
    Features,
    best_classes,
    parts,
    save_classifier,
)
from latteclip.clip.encode import class_embeddings
from latteclip.clip.features import read_features
from latteclip.config.keys import ClassTextsSection, ClipSection
from latteclip.core import devices, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.tables import ClassesMetadata, IndexMetadata


class ZeroShotSettings(ClassTextsSection):
    """The CLIP model, and the texts of the classes."""

    clip: ClipSection


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


def load_clip(section: ClipSection, device: str, threads: int) -> clips.Clip:
    """Load the CLIP model of a section on a device; see `devices.pick`."""
    picked = devices.pick(device, threads)
    return clips.load(section.model, section.pretrained, picked, section.precision)


def zero_shot_classifier(
    clip: clips.Clip, images_path: str, settings: ZeroShotSettings
) -> tuple[Classifier, dict[str, Any]]:
    """Return the classifier W0 [C, D] of the classes of an index, with its description.

    That has classnames, class_templates, model, pretrained and logit_scale, the factor of cosines.
    """
    index = tables.read_metadata(images_path, IndexMetadata)
    templates = ClassTemplates.of(settings.template, settings.class_synonyms)
    templates = replace(templates, written=index.written_names)
    classifier = Classifier.of(class_embeddings(clip, templates, index.classnames))
    described = {
        "classnames": index.classnames,
        "model": settings.clip.model,
        "pretrained": settings.clip.pretrained,
        "class_templates": vars(templates),
        "logit_scale": clip.model.logit_scale.exp().item(),  # type: ignore[operator]
    }
    return classifier, described


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
