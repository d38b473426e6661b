"""Read what labels are made of: features of N images, and the votes of each voter."""

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
from latteclip.labels.voters.base import Ballot, FusionSettings, VotedImages, VoterTable


@dataclass(frozen=True)
class Predictors:
    """What the labels of N images are made of."""

    images: ClipFeatures
    others: list[CentredFeatures]  # features of the image encoders beside CLIP
    ballots: dict[str, Ballot]  # what each voter says
    described: dict[str, Any]  # CLIP


def read_predictors(
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
    settings: FusionSettings,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    voters: Sequence[VoterTable],
    *,
    image_encoders_paths: Sequence[str] = (),
    device: str,
    threads: int,
) -> Predictors:
    """Read features of N images, and the votes of each voter."""
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
    others = [
        whiten(read_features(one, image_ids, tables.IMAGE_FEATURES))
        for one in image_encoders_paths
    ]
    ballots = {}
    for voter in voters:
        # By name: an edit of a voter reruns the labels that it votes for.
        module = importlib.import_module(f"latteclip.labels.voters.{voter.module}")
        ballots[voter.name] = module.vote(voter.table, voted)
    return Predictors(images, others, ballots, described)
