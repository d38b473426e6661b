"""The test split classified by the features of the pretrained model and a classifier of them.

Without a test split, all images are.
"""

from latteclip.clip.classifier import classify, load_classifier
from latteclip.core import tables
from latteclip.evaluate import gallery_images, judged, metrics
from latteclip.labels.features import read_features


def evaluate_classifier(
    images_path: str,
    pseudo_labels_path: str,
    classifier_path: str,
    votes_path: str | None,
    topk: int,
    run: metrics.Run,
    outputs: metrics.Outputs,
    judged_output: str,
    gallery_output: str,
) -> None:
    """Write predictions and metrics; each image is classified by itself.

    Training images that judge, and those of the page, are classified as well.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table, for the features of the images.
        classifier_path: what a stage without training wrote: it is ours, not the paper's.
        votes_path: the VOTES of which the classifier was made, which say what it makes of each
            image without the image's own part; None where it was made of none.
        topk: best classes kept for each image.
        run: what is evaluated.
        outputs: where the results are written.
        judged_output: where the classes of the images that judge are written.
        gallery_output: where the classes of the images that the page shows are written.

    Raises:
        UserError: an input is missing or does not fit the others, or there is no image.
    """
    table, names = metrics.read_evaluated_images(images_path, run.dataset)
    classifier, _ = load_classifier(classifier_path, classnames=names)
    features = read_features(pseudo_labels_path, table["image_id"])
    labels, scores = classify(features, classifier, topk)
    metrics.write(table, names, labels.numpy(), scores.numpy(), run, ["ours"], outputs)
    if votes_path is None:
        apart = judged.judging_images(images_path)["image_id"]
        known = classify(read_features(pseudo_labels_path, apart), classifier, 1)[0][:, 0].numpy()
    else:
        votes, _ = tables.read(votes_path, tables.VOTES, ["image_id", "head"])
        apart, known = votes["image_id"], votes["head"].to_numpy()
    judged.write_predictions(judged_output, apart, known, names)
    shown = gallery_images.read_shown(images_path, pseudo_labels_path)["image_id"]
    of_shown, _ = classify(read_features(pseudo_labels_path, shown), classifier, 1)
    gallery_images.write_predictions(gallery_output, shown, of_shown[:, 0].numpy(), names)
