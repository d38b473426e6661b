"""Score how likely each image shows none of the classes, by CLIP's features or by the captioner."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy.stats import mannwhitneyu

from latteclip.clip.classifier import UnknownDetector, load_classifier
from latteclip.clip.features import read_features
from latteclip.config.keys import UnknownSection
from latteclip.core import tables
from latteclip.core.tables import UnknownMetadata
from latteclip.labels.label_inputs import read_answers, read_class_scores
from latteclip.labels.votes import Bools, Floats, Ints

log = logging.getLogger(__name__)
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
    of_training = table.filter(pa.array(training))
    answers = read_answers(answers_path, of_training, classnames)
    answered = np.flatnonzero(training)[answers.rows]
    is_none: Bools = np.asarray(~answers.shares.any(axis=1))
    classes, described = load_classifier(class_embeddings_path)
    features = read_features(pseudo_labels_path, table["image_id"])
    detector = UnknownDetector.learn(
        features, torch.from_numpy(training), classes.weights, described
    )
    scores = detector.scores(features).numpy()
    n = int(settings.share * len(of_training))
    otherwise = nth_highest(scores[training], n)
    line = _threshold(scores, answered, is_none, otherwise)
    replace(detector, threshold=line).save(detector_output)
    unknown = scores > line
    by_captioner = np.full(len(table), np.nan, np.float32)
    if class_scores_path is not None:
        by_captioner[training] = _unlikeliness(
            *read_class_scores(class_scores_path, of_training["image_id"]),
            len(classnames),
        )
    scored = ~np.isnan(by_captioner)
    if scored.any():
        otherwise = nth_highest(by_captioner[scored], n)
        line = _threshold(by_captioner, answered, is_none, otherwise)
        unknown[scored] = by_captioner[scored] > line
    unknown[answered] = is_none
    columns = {
        "image_id": table["image_id"],
        "score": scores,
        "captioner_score": pa.array(by_captioner, pa.float32(), from_pandas=True),
        "is_unknown": unknown,
    }
    n_answers = 0 if line == otherwise else len(is_none)
    metadata = UnknownMetadata(classnames, n_answers)
    tables.write(output, columns, tables.UNKNOWN, metadata)
    log.info("%d of %d images are marked unknown.", unknown.sum(), len(table))


def _unlikeliness(options: Ints, scores: Floats, n_classes: int) -> Floats:
    """Return minus the log of the probability [N] of all classes together, from scores [N, K].

    It grows as the probability of "none of these". It is NaN where a class was no option, which the
    image may show. All are NaN where they were normalised, or are no probabilities.
    """
    has_all = (options >= 0).sum(axis=1) == n_classes
    values = np.full(len(scores), np.nan)
    values[has_all] = -np.logaddexp.reduce(
        scores[has_all].astype(np.float64), axis=1
    )
    least, most = values[has_all].min(initial=0), values[has_all].max(initial=0)
    if least < -ROUNDING or most <= ROUNDING:
        values[:] = np.nan
    return values.clip(0, None)


def nth_highest(scores: Floats, n: int) -> float:
    """Return the score above which n of the scores [N] lie, or fewer if some are equal."""
    return float(np.sort(scores)[max(0, len(scores) - 1 - n)])


def _threshold(
    scores: Floats, answered: Ints, is_none: Bools, otherwise: float
) -> float:
    """Return the midpoint of the mean scores of answered images [A] of a class and of none.

    It is `otherwise` with too few of either kind, or if those of none are not clearly larger.
    """
    of_answers = scores[answered]
    none, known = (
        of_answers[kind & ~np.isnan(of_answers)] for kind in (is_none, ~is_none)
    )
    if min(len(none), len(known)) < MIN_ANSWERS:
        return otherwise
    if mannwhitneyu(none, known, alternative="greater").pvalue > MAX_P_VALUE:
        return otherwise
    return float(none.mean(dtype=np.float64) + known.mean(dtype=np.float64)) / 2
