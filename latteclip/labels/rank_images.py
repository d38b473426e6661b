"""Order training images by what one more vote about each is expected to bring.

Not in the paper.
"""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip.classifier import load_classifier
from latteclip.config.sections.scores import ScoresSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import GainsMetadata
from latteclip.labels.adaptation import adapt
from latteclip.labels.cascade import Ranking, rank
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import ClipFeatures, Votes
from latteclip.labels.voter_estimates import fuse_counted
from latteclip.labels.voter_model import first_labels, fuse_voters
from latteclip.labels.voters import caption, lmm
from latteclip.labels.voters.base import FusionSettings, VotedImages

log = logging.getLogger(__name__)


class RankSettings(FusionSettings):
    """The CLIP model that reads the captions, and when nothing more is asked."""

    scores: ScoresSection  # its `min_gain`


def rank_images(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: RankSettings,
    output: str,
    *,
    captions_path: str | None = None,
    scores_path: str | None = None,
    gains_path: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write EXPECTED_GAINS of the images that are not in the test split.

    The labels so far are those by zero-shot scores and image features, with captions and the class
    scores of an earlier round if there are some and they count. The images of that round come
    first: they cost nothing more. `gains_path` is the table by which they were chosen. No others
    are asked about where answers would change fewer labels than `scores.min_gain`. The dataset's
    labels are not read.
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
    if captions_path is not None:
        votes["captions"] = caption.vote(captions_path, voted).votes
    if scores_path is not None:
        votes["scores"] = lmm.vote(scores_path, voted).votes
    joint, _ = fuse_counted(
        lambda some, tests: fuse_voters(images, some, tests=tests),
        votes or {"nobody": no_votes(n, len(classnames))},
    )
    asked = torch.zeros(n, dtype=torch.bool)
    answered = asked
    before = None
    unused = None
    if scores_path is not None and gains_path is not None:
        asked = _asked(scores_path, image_ids)
        before = _before(gains_path, image_ids)
        scores = votes["scores"]
        answered = asked & scores.has
        if joint.voters["scores"] is None:
            unused = first_labels(scores)
    ranking = rank(joint, asked, answered, before, unused)
    expected = float(ranking.gains.sum())
    least = settings.scores.min_gain * n
    metadata = GainsMetadata(
        answered=ranking.answered,
        changed=ranking.changed,
        expected=expected,
        is_enough=ranking.answered > 0 and expected < least,
    )
    columns = {
        "image_id": image_ids,
        "gain": pa.array(ranking.gains.float().numpy()),
        "turn": _turns(ranking, asked, is_enough=metadata.is_enough),
        "label": pa.array(ranking.labels.int().numpy()),
        "doubt": pa.array(ranking.doubt.float().numpy()),
    }
    tables.write(output, columns, tables.EXPECTED_GAINS, metadata)
    log.info(
        "%d of %d images have an answer, which changed %d labels. Answers about the others are "
        "expected to change %.1f labels%s.",
        metadata.answered,
        n,
        metadata.changed,
        metadata.expected,
        f", fewer than {least:.1f}: nothing more is asked" if metadata.is_enough else "",
    )


def _turns(ranking: Ranking, asked: torch.Tensor, *, is_enough: bool) -> pa.Array:
    """Return the place [N] of each image in the order of questions, null where it has none.

    Images that were asked about [N] come first: they cost nothing more.
    """
    order = asked.nonzero()[:, 0]
    if not is_enough:
        order = torch.cat([order, ranking.order(seed=len(order))])
    turns = np.full(len(asked), -1)
    turns[order.numpy()] = np.arange(len(order))
    return pa.array(turns, pa.int32(), mask=turns < 0)


def _before(path: str, image_ids: pa.ChunkedArray) -> Ranking:
    """Return the ranking of N images that `rank_images` wrote before an earlier round."""
    gain, label, doubt = (
        tables.lookup_column(path, tables.EXPECTED_GAINS, "image_id", name, image_ids)
        for name in ("gain", "label", "doubt")
    )
    return Ranking(
        gains=torch.tensor(gain.to_numpy()).double(),
        labels=torch.tensor(label.to_numpy()).long(),
        doubt=torch.tensor(doubt.to_numpy()).double(),
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
