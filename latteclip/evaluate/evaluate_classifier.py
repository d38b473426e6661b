"""The test split classified by the features of the pretrained model and a classifier of them.

Without a test split, all images are classified.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.clip.classifier import classify, load_classifier
from latteclip.core import tables
from latteclip.evaluate import metrics, train_predictions
from latteclip.labels.features import read_all_features


@dataclass(frozen=True)
class ClassifierSettings:
    """How many classes are written, and how the result is marked."""

    topk: int  # best classes of each image
    marks: list[str] = field(default_factory=list)  # keys of `results.MARKS`


def evaluate_classifier(
    images_path: str,
    pseudo_labels_path: str,
    classifier_path: str,
    votes_path: str | None,
    settings: ClassifierSettings,
    dataset: str,
    method: str,
    seed: int,
    predictions_output: str,
    metrics_output: str,
    train_predictions_output: str,
    eyes_paths: Sequence[str] = (),
) -> None:
    """Write predictions and metrics of a classifier without training, and TRAIN_PREDICTIONS.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table, for the features of the images.
        classifier_path: the class texts (zero-shot), or what a stage made of them.
        votes_path: the VOTES of which the classifier was made, with its prediction for each image
            without the image's vote. None where it was made of none.
        settings: of the evaluation.
        dataset: its key.
        method: the method of the run.
        seed: the seed of the run.
        predictions_output: a PREDICTIONS table.
        metrics_output: JSON, which `latteclip.evaluate.results` reads.
        train_predictions_output: a TRAIN_PREDICTIONS table.
        eyes_paths: IMAGE_FEATURES tables, where the classifier is of the features of all models.

    Raises:
        UserError: an input is missing or does not fit the others, or there is no image.
    """
    table, names = metrics.read_evaluated_images(images_path, dataset)
    classifier, _ = load_classifier(classifier_path, classnames=names)

    def predict(image_ids: pa.ChunkedArray) -> npt.NDArray[np.int_]:
        """Return the best class of each image."""
        features = read_all_features(pseudo_labels_path, eyes_paths, image_ids)
        return np.asarray(classify(features, classifier, 1)[0][:, 0])

    features = read_all_features(pseudo_labels_path, eyes_paths, table["image_id"])
    labels, scores = classify(features, classifier, settings.topk)
    metrics.write(
        *(table, names, labels.numpy(), scores.numpy(), settings.marks),
        dataset=dataset,
        method=method,
        seed=seed,
        predictions_output=predictions_output,
        metrics_output=metrics_output,
    )
    if votes_path is None:
        held_out = train_predictions.comparison_images(images_path)["image_id"]
        predictions = predict(held_out)
    else:
        head = "joint_head" if eyes_paths else "head"
        votes, _ = tables.read(votes_path, tables.VOTES_EYES, ["image_id", head])
        held_out, predictions = votes["image_id"], votes[head].to_numpy()
    examples = train_predictions.example_images(images_path, pseudo_labels_path)["image_id"]
    train_predictions.write_predictions(
        train_predictions_output, (held_out, predictions), (examples, predict(examples)), names
    )
