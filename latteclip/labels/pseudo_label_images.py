"""Zero-shot pseudo-labels of N images from a frozen CLIP (LatteCLIP, section 3.1)."""

import logging

import pyarrow as pa
import torch

from latteclip.clip import classifier
from latteclip.clip.classifier import ROWS, Features, best_classes, parts
from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.labels.zero_shot import ZeroShotSettings, encode_zero_shot

log = logging.getLogger(__name__)


def pseudo_label_images(
    images_path: str,
    settings: ZeroShotSettings,
    output: str,
    class_embeddings_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Write PSEUDO_LABELS for every image of every split, and the classifier W0 [C, D]."""
    table, classnames = tables.read_unlabelled(images_path, training=False)
    encoded = encode_zero_shot(
        images_path, table["path"].to_pylist(), settings, device=device, threads=threads
    )
    classes = ClassesMetadata(classnames)
    topk = tables.TOPK
    write_pseudo_labels(
        output, table, encoded.features, encoded.embeddings, encoded.scale, topk, classes
    )
    head = classifier.Classifier.of(encoded.embeddings)
    classifier.save_classifier(class_embeddings_output, head, encoded.described)
    log.info("Pseudo-labelled %d images with %d classes.", len(table), len(classnames))


def write_pseudo_labels(
    output: str,
    table: pa.Table,
    features: Features,
    embeddings: torch.Tensor,
    scale: float,
    topk: int,
    metadata: ClassesMetadata,
) -> None:
    """Classify images by features [N, D] under W0 [C, D], and write PSEUDO_LABELS by parts."""
    with tables.writing(output, tables.PSEUDO_LABELS, metadata) as add:
        for some in parts(len(features), ROWS):
            part = features[some]
            scores = part @ embeddings.T  # [rows, C]
            labels, best = best_classes(scores, topk)
            confidence = (scale * scores).softmax(dim=1).gather(1, labels[:, :1])[:, 0]
            rows = table.slice(some.start, len(part))
            add(
                {
                    "image_id": rows["image_id"],
                    "split": rows["split"],
                    "pseudo_label": pa.array(labels[:, 0].numpy(), pa.int32()),
                    "confidence": confidence.numpy(),
                    "topk_labels": labels.tolist(),
                    "topk_scores": best.tolist(),
                    "image_features": tables.list_column(part.numpy()),
                }
            )
