"""The test split classified by the features of the pretrained model and a classifier of them."""

from latteclip.clip.classifier import load_classifier
from latteclip.clip.ranking import classify
from latteclip.evaluate import metrics
from latteclip.labels.features import read_features


def evaluate_classifier(
    images_path: str,
    pseudo_labels_path: str,
    classifier_path: str,
    topk: int,
    run: metrics.Run,
    outputs: metrics.Outputs,
) -> None:
    """Write predictions and metrics; each test image is classified by itself.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table, for the features of the images.
        classifier_path: what a stage without training wrote: it is ours, not the paper's.
        topk: best classes kept for each image.

    Raises:
        UserError: an input is missing or does not fit the others, or there is no test image.
    """
    table, names = metrics.read_test_images(images_path, run.dataset)
    classifier, _ = load_classifier(classifier_path, classnames=names)
    features = read_features(pseudo_labels_path, table["image_id"])
    labels, scores = classify(features, classifier, topk)
    metrics.write(table, names, labels.numpy(), scores.numpy(), run, ["ours"], outputs)
