"""Read what labels are made of: features of N images, and the votes of a voter."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.labels.adaptation import adapt
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import CentredFeatures, ClipFeatures, whiten
from latteclip.labels.voters.base import Ballot, FusionSettings, VotedImages


@dataclass(frozen=True)
class Predictors:
    """What the labels of N images are made of."""

    images: ClipFeatures
    others: list[CentredFeatures]  # features of the image encoders beside CLIP
    ballot: Ballot  # what the voter says
    described: dict[str, Any]  # CLIP


def read_predictors(
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    settings: FusionSettings,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    voter: str,
    voter_table_path: str,
    *,
    image_encoders_paths: Sequence[str] = (),
    device: str,
    threads: int,
) -> Predictors:
    """Read features of N images, and the votes of a voter: a module of latteclip/labels/voters."""
    model = settings.clip.model
    pretrained = settings.clip.pretrained
    classes, described = load_classifier(
        class_embeddings_path, classnames=classnames, model=model, pretrained=pretrained
    )
    scale = described["logit_scale"]
    features = read_features(pseudo_labels_path, image_ids)
    images = adapt(ClipFeatures.of(features, classes.weights, scale))
    voted = VotedImages(
        image_ids, images, classes.weights, scale, settings, device, threads
    )
    # By name: an edit of a voter reruns the labels that it votes for.
    module = importlib.import_module(f"latteclip.labels.voters.{voter}")
    others = [
        whiten(read_features(one, image_ids, tables.IMAGE_FEATURES))
        for one in image_encoders_paths
    ]
    return Predictors(images, others, module.vote(voter_table_path, voted), described)
