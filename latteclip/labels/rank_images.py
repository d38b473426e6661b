"""Order training images by what one more vote about each is expected to bring.

Not in the paper.
"""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.adaptation import adapt
from latteclip.labels.cascade import in_one_round
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import ClipFeatures, Votes
from latteclip.labels.voter_model import fuse_voters
from latteclip.labels.voters import caption, lmm
from latteclip.labels.voters.base import FusionSettings, VotedImages

log = logging.getLogger(__name__)


def rank_images(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: FusionSettings,
    output: str,
    *,
    captions_path: str | None = None,
    scores_path: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write EXPECTED_GAINS of the images that are not in the test split.

    The labels so far are those by zero-shot scores and image features, with captions and the class
    scores of an earlier round if there are some. The images of that round come first: they cost
    nothing more. The dataset's labels are not read.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"]
    n = len(table)
    if n == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    classes, described = load_classifier(class_embeddings_path, classnames=classnames)
    features = read_features(pseudo_labels_path, image_ids)
    scale = described["logit_scale"]
    images = adapt(ClipFeatures.of(features, classes.weights, scale))
    voted = VotedImages(
        image_ids, images, classes.weights, scale, settings, device, threads
    )
    votes = {}
    asked = torch.zeros(n, dtype=torch.bool)
    if captions_path is not None:
        votes["captions"] = caption.vote(captions_path, voted).votes
    if scores_path is not None:
        votes["scores"] = lmm.vote(scores_path, voted).votes
        asked = _asked(scores_path, image_ids)
    votes = votes or {"nobody": no_votes(n, len(classnames))}
    gains, order = in_one_round(fuse_voters(images, votes).model, asked)
    order = torch.cat([asked.nonzero()[:, 0], order])
    turns = np.full(n, -1)
    turns[order.numpy()] = np.arange(len(order))
    columns = {
        "image_id": image_ids,
        "gain": pa.array(gains.float().numpy()),
        "turn": pa.array(turns, pa.int32(), mask=turns < 0),
    }
    tables.write(output, columns, tables.EXPECTED_GAINS)
    log.info(
        "%d of %d images were asked about. About %.0f labels of the others are expected to be "
        "wrong so far.",
        int(asked.sum()),
        n,
        float(gains.sum()),
    )


def _asked(path: str, image_ids: pa.ChunkedArray) -> torch.Tensor:
    """Return whether each of N images was asked about."""
    digests = tables.lookup_column(
        path, tables.CLASS_SCORES, "image_id", "digest", image_ids
    )
    return torch.from_numpy(pc.is_valid(digests).to_numpy())


def no_votes(n: int, n_classes: int) -> Votes:
    """Return the votes of a voter that is silent about all of N images."""
    nothing = torch.zeros(n_classes, dtype=torch.float64)
    has = torch.zeros(n, dtype=torch.bool)
    return Votes(has, lambda rows: nothing.expand(len(has[rows]), n_classes))
