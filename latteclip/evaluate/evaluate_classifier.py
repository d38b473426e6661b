"""A classifier of features that other stages wrote, as a model that was not trained."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latteclip.clip.classifier import (
    ENCODERS,
    classify,
    load_classifier,
    save_classifier,
)
from latteclip.clip.features import read_all_features
from latteclip.clip.model_files import CLASSIFIER
from latteclip.core import tables
from latteclip.core.files import link_folder, replacing
from latteclip.core.holdout import held_out_for_choice
from latteclip.core.tables import EncoderMetadata
from latteclip.evaluate.results import RunFiles, read_evaluated_images, write_run
from latteclip.labels.votes import Ints


def evaluate_classifier(
    images_path: str,
    pseudo_labels_path: str,
    classifier_path: str,
    votes_path: str | None,
    clip: str,
    dataset: str,
    method: str,
    seed: int,
    predictions_output: str,
    metrics_output: str,
    train_predictions_output: str,
    model_output: str,
    image_encoders_paths: Sequence[str] = (),
    encoders: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> None:
    """Write predictions and metrics of a classifier, and its model beside pretrained encoders.

    These are folders: of CLIP, and of the image encoders whose features stand beside CLIP's.
    """
    table, names = read_evaluated_images(images_path)
    classifier, described = load_classifier(classifier_path)

    def rank(ids: pa.ChunkedArray, k: int) -> Ints:
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
    run = RunFiles(
        method, seed, metrics_output, train_predictions_output, predictions_output
    )
    write_run(
        table,
        names,
        rank(table["image_id"], tables.TOPK),
        (held_out, predicted),
        flags,
        dataset,
        run,
    )
    described["encoder_widths"] = [
        tables.read_metadata(path, EncoderMetadata).width
        for path in image_encoders_paths
    ]
    with replacing(model_output) as folder:
        link_folder(clip, folder)
        for number, encoder in enumerate(encoders):
            link_folder(encoder, folder / ENCODERS / str(number))
        save_classifier(folder / CLASSIFIER, classifier, described)
