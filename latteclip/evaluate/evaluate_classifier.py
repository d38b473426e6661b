"""The test split classified by the features of the pretrained model and a classifier of them."""

from collections.abc import Sequence

import pyarrow as pa
from pydantic import Field

from latteclip.clip.classifier import classify, load_classifier
from latteclip.core import tables
from latteclip.core.holdout import held_out_for_choice
from latteclip.evaluate import metrics, train_predictions
from latteclip.labels.features import read_all_features
from latteclip.train.assemble_model import PretrainedClip, assemble_model


class ClassifierSettings(PretrainedClip):
    """The models whose features the classifier classifies, and how the result is marked."""

    flags: list[str] = Field(default_factory=list)  # keys of `core.flags.FLAGS`


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
    table, names = metrics.read_evaluated_images(images_path, dataset)
    classifier, _ = load_classifier(classifier_path, classnames=names)
    features = read_all_features(
        pseudo_labels_path, image_encoders_paths, table["image_id"]
    )
    labels, scores = classify(features, classifier, tables.TOPK)
    metrics.write(
        table,
        names,
        ranked=labels.numpy(),
        scores=scores.numpy(),
        flags=settings.flags,
        run=(dataset, method, seed),
        predictions_output=predictions_output,
        metrics_output=metrics_output,
    )
    if votes_path is None:
        ids = tables.read_unlabelled(images_path, training=True)[0]["image_id"]
        held_out = ids.filter(pa.array(held_out_for_choice(tables.Strings(ids))))
        features = read_all_features(pseudo_labels_path, image_encoders_paths, held_out)
        predicted = classify(features, classifier, 1)[0][:, 0].numpy()
    else:
        head = "joint_head" if image_encoders_paths else "head"
        votes = tables.read(votes_path, tables.VOTES_ENCODERS, ["image_id", head])
        held_out = votes["image_id"]
        predicted = votes[head].to_numpy()
    train_predictions.write_predictions(
        train_predictions_output, held_out, predicted, names
    )
    assemble_model(classifier_path, settings, model_output)
