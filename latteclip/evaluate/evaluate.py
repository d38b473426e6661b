"""Images classified by the model of a run: the test split, and training images it left out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from latteclip.clip.classifier import classify, load_classifier
from latteclip.clip.image_encoders import PretrainedClip, assemble_model
from latteclip.clip.model import load_finetuned
from latteclip.core import devices, tables
from latteclip.core.holdout import Fold, held_out_for_choice
from latteclip.evaluate.classify import classify_evaluated, classify_left_out
from latteclip.evaluate.results import read_evaluated_images, write_run
from latteclip.labels.features import read_all_features
from latteclip.train.settings import TrainingMetadata


class ClassifierSettings(PretrainedClip):
    """The models whose features the classifier classifies, and how the result is marked."""

    flags: list[str] = Field(default_factory=list)  # keys of `core.tables.FLAGS`


def evaluate(
    images_path: str,
    model_path: str,
    history_path: str,
    fold: Fold,
    *,
    precision: str,
    dataset: str,
    method: str,
    seed: int,
    predictions_output: str,
    metrics_output: str,
    train_predictions_output: str,
    device: str,
    threads: int,
) -> None:
    """Classify the test split with a fine-tuned model, or all images without a test split.

    The training images of the fold, which were not trained on, are classified as well.
    """
    history = tables.read_metadata(history_path, TrainingMetadata)
    where = devices.pick(device, threads)
    model = load_finetuned(model_path, where, precision)
    classify_evaluated(
        images_path,
        model,
        classify_left_out(images_path, model, fold, threads),
        history.flags,
        (dataset, method, seed),
        (predictions_output, metrics_output, train_predictions_output),
        threads,
    )


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
    model_output: str,
    image_encoders_paths: Sequence[str] = (),
) -> None:
    """Write the model of a classifier without training, its predictions and its metrics."""
    table, names = read_evaluated_images(images_path)
    classifier, _ = load_classifier(classifier_path)

    def rank(ids: pa.ChunkedArray, k: int) -> npt.NDArray[np.int_]:
        features = read_all_features(pseudo_labels_path, image_encoders_paths, ids)
        return np.asarray(classify(features, classifier, k)[0])

    if votes_path is None:
        ids = tables.read_unlabelled(images_path, training=True)[0]["image_id"]
        held_out = ids.filter(pa.array(held_out_for_choice(tables.Strings(ids))))
        predicted: npt.ArrayLike = rank(held_out, 1)[:, 0]
    else:
        head = "joint_head" if image_encoders_paths else "head"
        votes = tables.read(votes_path, ["image_id", head])
        held_out = votes["image_id"]
        predicted = votes[head]
    write_run(
        table,
        names,
        rank(table["image_id"], tables.TOPK),
        (held_out, predicted),
        settings.flags,
        (dataset, method, seed),
        (predictions_output, metrics_output, train_predictions_output),
    )
    assemble_model(classifier_path, settings, model_output)
