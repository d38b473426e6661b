"""Zero-shot scores of N images by a CLIP model: features, and the classifier W0 [C, D]."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Features
from latteclip.clip.encode import class_embeddings, encode_files
from latteclip.config.keys import ClassTextsSection, ClipSection, Section
from latteclip.core import devices, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.tables import IndexMetadata


class ZeroShotSettings(Section):
    """The CLIP model, the texts of the classes, and how images are encoded."""

    clip: ClipSection
    class_texts: ClassTextsSection


@dataclass(frozen=True)
class ZeroShot:
    """What a CLIP model says of N images."""

    features: Features  # [N, D]
    embeddings: torch.Tensor  # [C, D] W0
    scale: float  # factor of the cosines
    described: dict[str, Any]  # the description of W0


def encode_zero_shot(
    images_path: str,
    paths: Sequence[str],
    settings: ZeroShotSettings,
    *,
    device: str,
    threads: int,
) -> ZeroShot:
    """Encode image files and the classes of an index.

    The description of W0 has classnames, template (the first one), templates (if there are
    several), class_synonyms, written_names, model, pretrained and logit_scale.
    """
    index = tables.read_metadata(images_path, IndexMetadata)
    model = settings.clip.model
    pretrained = settings.clip.pretrained
    clip = clips.load(
        model, pretrained, devices.pick(device, threads), settings.clip.precision
    )
    class_templates = ClassTemplates.of(
        settings.class_texts.template, settings.class_texts.class_synonyms
    )
    class_templates = replace(class_templates, written=index.written_names)
    embeddings = class_embeddings(
        clip, class_templates.templates, index.classnames, class_templates.synonyms
    )
    features = encode_files(clip, paths, threads)
    described: dict[str, Any] = {"classnames": index.classnames, "model": model}
    described |= {"pretrained": pretrained, **class_templates.described}
    scale = clip.model.logit_scale.exp().item()  # type: ignore[operator]
    described["logit_scale"] = scale
    return ZeroShot(features, embeddings, scale, described)
