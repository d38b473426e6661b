"""Zero-shot pseudo-labels from a frozen CLIP (LatteCLIP, section 3.1).

Letters: N images, C classes, D embedding width.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import torch

from latteclip.clip import classifier, encode
from latteclip.clip import model as clips
from latteclip.clip.features import encode_files
from latteclip.clip.ranking import ROWS, best_classes
from latteclip.core import devices, tables
from latteclip.core.prompts import class_texts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ZeroShotSettings:
    """What the pseudo-labels depend on."""

    model: str
    pretrained: str | None
    template: str
    batch_size: int
    topk: int
    precision: str = "bf16"


@torch.no_grad()
def class_embeddings(clip: clips.Clip, template: str, classnames: list[str]) -> torch.Tensor:
    """W0: row c = f_txt(T(c)), [C, D], L2-normalised (LatteCLIP, section 3.1)."""
    return encode.encode_texts(clip, clip.tokenizer(class_texts(template, classnames)))


def feature_column(features: torch.Tensor) -> pa.Array:
    """[N, D] as a Parquet column of lists."""
    n, width = features.shape
    offsets = pa.array(range(0, n * width + 1, width), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(features.reshape(-1).numpy()))


def pseudo_label_images(
    images_path: str,
    settings: ZeroShotSettings,
    output: str,
    class_embeddings_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Write PSEUDO_LABELS for every image of every split, and W0; labels are not read.

    W0 [C, D] is a classifier described by classnames, template, model, pretrained and logit_scale,
    which is exp of the model's parameter: the factor of cosines in a softmax.
    """
    table, classnames = tables.read_unlabelled(images_path, training=False)
    clip = clips.load(
        settings.model, settings.pretrained, devices.pick(device, threads), settings.precision
    )
    embeddings = class_embeddings(clip, settings.template, classnames).cpu()  # [C, D]
    features = encode_files(clip, table["path"].to_pylist(), settings.batch_size, threads)
    described = {
        "classnames": classnames,
        "model": settings.model,
        "pretrained": settings.pretrained,
        "template": settings.template,
    }
    scale = clip.model.logit_scale.exp().item()  # type: ignore[operator]
    write_pseudo_labels(output, table, features, embeddings, scale, settings.topk, described)
    classifier.save_classifier(
        class_embeddings_output,
        classifier.Classifier.of(embeddings),
        {**described, "logit_scale": scale},
    )
    log.info("Pseudo-labelled %d images with %d classes.", len(table), len(classnames))


def write_pseudo_labels(
    output: str,
    table: pa.Table,
    features: torch.Tensor,
    embeddings: torch.Tensor,
    scale: float,
    topk: int,
    described: Mapping[str, object],
) -> None:
    """Classify images by their features, and write PSEUDO_LABELS, ROWS at a time.

    Args:
        table: image_id and split of the N images.
        features: [N, D].
        embeddings: [C, D], W0.
        scale: factor of the cosines in a softmax.
        topk: best classes kept.
        described: the metadata.
    """
    with tables.writing(output, tables.PSEUDO_LABELS, described) as add:
        for start, part in zip(range(0, len(features), ROWS), features.split(ROWS), strict=True):
            scores = part @ embeddings.T  # [rows, C]
            labels, best = best_classes(scores, topk)
            confidence = (scale * scores).softmax(dim=1).gather(1, labels[:, :1])[:, 0]
            rows = table.slice(start, len(part))
            add(
                {
                    "image_id": rows["image_id"],
                    "split": rows["split"],
                    "pseudo_label": pa.array(labels[:, 0].numpy(), pa.int32()),
                    "confidence": confidence.numpy(),
                    "topk_labels": labels.tolist(),
                    "topk_scores": best.tolist(),
                    "image_features": feature_column(part),
                }
            )
