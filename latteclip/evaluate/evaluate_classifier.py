"""The test split classified by the features of the pretrained model and a classifier of them.

Without a test split, all images are classified.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.clip.classifier import classify, load_classifier
from latteclip.core import tables
from latteclip.evaluate import metrics, train_predictions
from latteclip.labels.features import read_features


@dataclass(frozen=True)
class ClassifierSettings:
    """How many classes are written, and how the result is marked."""

    topk: int  # best classes of each image
    marks: list[str] = field(default_factory=list)  # keys of `results.MARKS`


@dataclass(frozen=True)
class ClassifierFiles:
    """What a classifier is evaluated on."""

    images: str
    pseudo_labels: str  # for the features of the images
    classifier: str  # the class texts (zero-shot), or what a stage made of them
    # Votes of which the classifier was made, with its prediction for each image without the
    # image's own vote; None where it was made of none.
    votes: str | None = None


def evaluate_classifier(
    files: ClassifierFiles,
    settings: ClassifierSettings,
    run: metrics.Run,
    outputs: metrics.Outputs,
    train_output: str,
) -> None:
    """Write predictions and metrics of a classifier without training, and TRAIN_PREDICTIONS.

    Raises:
        UserError: an input is missing or does not fit the others, or there is no image.
    """
    table, names = metrics.read_evaluated_images(files.images, run.dataset)
    classifier, _ = load_classifier(files.classifier, classnames=names)

    def predict(image_ids: pa.ChunkedArray) -> npt.NDArray[np.int_]:
        """Return the best class of each image."""
        features = read_features(files.pseudo_labels, image_ids)
        return np.asarray(classify(features, classifier, 1)[0][:, 0])

    features = read_features(files.pseudo_labels, table["image_id"])
    labels, scores = classify(features, classifier, settings.topk)
    metrics.write(table, names, labels.numpy(), scores.numpy(), run, settings.marks, outputs)
    if files.votes is None:
        held_out = train_predictions.comparison_images(files.images)["image_id"]
        predictions = predict(held_out)
    else:
        votes, _ = tables.read(files.votes, tables.VOTES, ["image_id", "head"])
        held_out, predictions = votes["image_id"], votes["head"].to_numpy()
    examples = train_predictions.example_images(files.images, files.pseudo_labels)["image_id"]
    train_predictions.write_predictions(
        train_output, (held_out, predictions), (examples, predict(examples)), names
    )
