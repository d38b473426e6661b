"""Score how likely each image shows none of the classes, by CLIP's features or by the captioner."""

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy.stats import mannwhitneyu

from latteclip.clip.classifier import UnknownDetector, load_classifier, threshold
from latteclip.config.keys import UnknownSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.tables import UnknownMetadata
from latteclip.labels.features import read_features
from latteclip.labels.label_inputs import read_answers, read_class_scores

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
MIN_ANSWERS = 5  # fewest answers of either kind from which a threshold follows
MAX_P_VALUE = 0.01  # largest p-value with which scores separate both kinds
ROUNDING = 1e-3  # largest rounding error of the log of a sum of probabilities


def score_unknown(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: UnknownSection,
    output: str,
    detector_output: str,
    class_scores_path: str | None = None,
    answers_path: str | None = None,
) -> None:
    """Write UNKNOWN for every image of every split, and the detector for new images.

    Where the captioner scored all classes of a training image, its scores decide. Thresholds follow
    from a person's answers where these show that the scores tell images of no class apart.
    """
    table, classnames = tables.read_unlabelled(images_path, training=False)
    training = pc.not_equal(table["split"], "test").to_numpy()
    if not training.any():
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    classes, described = load_classifier(class_embeddings_path, classnames=classnames)
    features = read_features(pseudo_labels_path, table["image_id"])
    detector, distances = UnknownDetector.learn(
        features, torch.from_numpy(training), classes.weights, settings.share, described
    )
    of_training = table.filter(pa.array(training))
    scores = distances.numpy()
    answers = read_answers(answers_path, of_training, classnames)
    rows = np.flatnonzero(training)[answers.rows]
    is_none: Bools = np.asarray(~answers.shares.any(axis=1))
    limit = answered_threshold(scores[rows], is_none, detector.threshold)
    replace(detector, threshold=limit).save(detector_output)
    metadata = UnknownMetadata(classnames, limit, settings.share)
    unknown = scores > limit
    by_captioner = np.full(len(table), np.nan, np.float32)
    if class_scores_path is not None:
        options, found = read_class_scores(class_scores_path, of_training["image_id"])
        # Where other classes were no options, the image may show one of them.
        has_all = (options >= 0).sum(axis=1) == len(classnames)
        found[~has_all] = -np.inf
        by_captioner[training] = unlikeliness(found)
    scored = ~np.isnan(by_captioner)
    if scored.any():
        n = int(settings.share * len(of_training))
        asked = scored[rows]
        limit = threshold(torch.from_numpy(by_captioner[scored]), n)
        limit = answered_threshold(by_captioner[rows[asked]], is_none[asked], limit)
        unknown[scored] = by_captioner[scored] > limit
        metadata.captioner_threshold = limit
    unknown[rows] = is_none
    if is_none.any():
        metadata.answers = {"none": int(is_none.sum()), "classes": int((~is_none).sum())}
    columns = {
        "image_id": table["image_id"],
        "score": scores,
        "captioner_score": pa.array(by_captioner, pa.float32(), from_pandas=True),
        "is_unknown": unknown,
    }
    tables.write(output, columns, tables.UNKNOWN, metadata)
    log.info("%d of %d images are marked unknown.", unknown.sum(), len(table))


def unlikeliness(scores: Floats) -> Floats:
    """Return minus the log of the probability [N] of all options together, from scores [N, K].

    It grows as the probability of "none of these". It is NaN where an image has no scores. All are
    NaN where scores cannot tell: they were normalised, or they are no probabilities.
    """
    has_some = scores.max(axis=1) > -np.inf
    values = np.full(len(scores), np.nan)
    values[has_some] = -np.logaddexp.reduce(scores[has_some].astype(np.float64), axis=1)
    if (
        values[has_some].min(initial=0) < -ROUNDING
        or values[has_some].max(initial=0) <= ROUNDING
    ):
        values[:] = np.nan
    return values.clip(0, None).astype(np.float32)


def answered_threshold(scores: Floats, is_none: Bools, otherwise: float) -> float:
    """Return the midpoint of the mean scores [A] of answered images of a class and of none.

    It is `otherwise` with too few of either kind, or if those of none are not clearly larger.
    """
    if min(is_none.sum(), (~is_none).sum()) < MIN_ANSWERS:
        return otherwise
    test = mannwhitneyu(scores[is_none], scores[~is_none], alternative="greater")
    means = (scores[kind].mean(dtype=np.float64) for kind in (is_none, ~is_none))
    return float(sum(means)) / 2 if test.pvalue <= MAX_P_VALUE else otherwise
