"""The test split classified by the features of the pretrained model and a classifier of them."""

from dataclasses import dataclass

from latteclip.clip.classifier import load_classifier
from latteclip.clip.ranking import classify
from latteclip.evaluate import held_out, metrics
from latteclip.labels.features import read_features


@dataclass(frozen=True)
class ClassifierSettings:
    """How images are classified."""

    topk: int  # best classes kept for each test image
    held_out: float = 0.0  # share of the training images that no label was learned from


def evaluate_classifier(
    images_path: str,
    pseudo_labels_path: str,
    classifier_path: str,
    settings: ClassifierSettings,
    run: metrics.Run,
    outputs: metrics.Outputs,
    held_out_output: str,
) -> None:
    """Write predictions and metrics; each image is classified by itself.

    The training images that were held out are classified as well.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table, for the features of the images.
        classifier_path: what a stage without training wrote: it is ours, not the paper's.

    Raises:
        UserError: an input is missing or does not fit the others, or there is no test image.
    """
    table, names = metrics.read_test_images(images_path, run.dataset)
    classifier, _ = load_classifier(classifier_path, classnames=names)
    features = read_features(pseudo_labels_path, table["image_id"])
    labels, scores = classify(features, classifier, settings.topk)
    metrics.write(table, names, labels.numpy(), scores.numpy(), run, ["ours"], outputs)
    apart = held_out.read_held_out_images(images_path, settings.held_out)
    unseen, _ = classify(read_features(pseudo_labels_path, apart["image_id"]), classifier, 1)
    held_out.write_predictions(held_out_output, apart, unseen[:, 0].numpy(), names)
