"""Order training images by what one more vote about each is expected to bring.

Not in the paper.
"""

import logging

import numpy as np
import pyarrow as pa
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.adaptation import adapt
from latteclip.labels.cascade import in_one_round
from latteclip.labels.features import read_features
from latteclip.labels.fusion import LabelModel
from latteclip.labels.label_sources import ClipFeatures, Votes
from latteclip.labels.predictors import read_predictors
from latteclip.labels.voters.base import FusionSettings, VoterTable

log = logging.getLogger(__name__)
CAPTION = "caption"  # the module of the voter


def rank_images(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: FusionSettings,
    output: str,
    *,
    captions_path: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write EXPECTED_GAINS of the images that are not in the test split.

    The labels so far are those by captions, if there are some, and by zero-shot scores and image
    features. The dataset's labels are not read.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"]
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    if captions_path is None:
        classes, described = load_classifier(class_embeddings_path, classnames=classnames)
        features = read_features(pseudo_labels_path, image_ids)
        scale = described["logit_scale"]
        images = adapt(ClipFeatures.of(features, classes.weights, scale))
        votes = no_votes(len(table), len(classnames))
    else:
        known = read_predictors(
            image_ids,
            classnames,
            settings,
            pseudo_labels_path,
            class_embeddings_path,
            [VoterTable(CAPTION, "captions", CAPTION, captions_path)],
            device=device,
            threads=threads,
        )
        images = known.images
        votes = known.ballots[CAPTION].votes
    model = LabelModel(images, votes)
    model.fused()
    gains, order = in_one_round(model)
    turns = np.full(len(table), -1)
    turns[order.numpy()] = np.arange(len(order))
    columns = {
        "image_id": image_ids,
        "gain": pa.array(gains.float().numpy()),
        "turn": pa.array(turns, pa.int32(), mask=turns < 0),
    }
    tables.write(output, columns, tables.EXPECTED_GAINS)
    log.info(
        "About %.0f of %d labels are expected to be wrong so far.",
        float(gains.sum()),
        len(table),
    )


def no_votes(n: int, n_classes: int) -> Votes:
    """Return the votes of a voter that is silent about all of N images."""
    nothing = torch.zeros(n_classes, dtype=torch.float64)
    has = torch.zeros(n, dtype=torch.bool)
    return Votes(has, lambda rows: nothing.expand(len(has[rows]), n_classes))
