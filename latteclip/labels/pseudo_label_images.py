"""Zero-shot pseudo-labels of N images from a frozen CLIP (LatteCLIP, section 3.1)."""

import logging
from dataclasses import replace

import pyarrow as pa
import torch

from latteclip.clip import classifier
from latteclip.clip import model as clips
from latteclip.clip.classifier import ROWS, Features, best_classes, parts
from latteclip.clip.encode import class_embeddings, encode_files
from latteclip.config.sections.base import Section
from latteclip.config.sections.class_texts import ClassTextsSection
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import devices, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.metadata import ClassesMetadata, IndexMetadata

log = logging.getLogger(__name__)


class ZeroShotSettings(Section):
    """The CLIP model, the texts of the classes, and how images are encoded."""

    clip: ClipSection
    inference: InferenceSection
    class_texts: ClassTextsSection


def pseudo_label_images(
    images_path: str,
    settings: ZeroShotSettings,
    output: str,
    class_embeddings_output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Write PSEUDO_LABELS for every image of every split, and the classifier W0 [C, D].

    The description of W0 has classnames, template (the first one), templates (if there are
    several), class_synonyms, written_names, model, pretrained and logit_scale.
    """
    table, classnames = tables.read_unlabelled(images_path, training=False)
    model = settings.clip.model
    pretrained = settings.clip.pretrained
    clip = clips.load(
        model, pretrained, devices.pick(device, threads), settings.clip.precision
    )
    written = tables.read_metadata(images_path, IndexMetadata).written_names
    class_templates = ClassTemplates.of(
        settings.class_texts.template, settings.class_texts.class_synonyms
    )
    class_templates = replace(class_templates, written=written)
    embeddings = class_embeddings(
        clip, class_templates.templates, classnames, class_templates.synonyms
    )  # [C, D]
    features = encode_files(
        clip, table["path"].to_pylist(), settings.inference.batch_size, threads
    )
    described: dict[str, object] = {"classnames": classnames, "model": model}
    described |= {"pretrained": pretrained, **class_templates.described}
    scale = clip.model.logit_scale.exp().item()  # type: ignore[operator]
    described["logit_scale"] = scale
    classes = ClassesMetadata(classnames)
    topk = settings.inference.topk
    write_pseudo_labels(output, table, features, embeddings, scale, topk, classes)
    head = classifier.Classifier.of(embeddings)
    classifier.save_classifier(class_embeddings_output, head, described)
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
