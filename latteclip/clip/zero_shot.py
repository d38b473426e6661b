"""The zero-shot classifier of a dataset's classes from a frozen CLIP (LatteCLIP, section 3.1)."""

from dataclasses import replace
from typing import Any

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import class_embeddings
from latteclip.config.keys import ClassTextsSection, ClipSection
from latteclip.core import devices, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.tables import IndexMetadata


class ZeroShotSettings(ClassTextsSection):
    """The CLIP model, and the texts of the classes."""

    clip: ClipSection


def load_clip(section: ClipSection, device: str, threads: int) -> clips.Clip:
    """Load the CLIP model of a section on a device; see `devices.pick`."""
    picked = devices.pick(device, threads)
    return clips.load(section.model, section.pretrained, picked, section.precision)


def zero_shot_classifier(
    clip: clips.Clip, images_path: str, settings: ZeroShotSettings
) -> tuple[Classifier, dict[str, Any]]:
    """Return the classifier W0 [C, D] of the classes of an index, with its description.

    That has classnames, class_templates, model, pretrained and logit_scale, the factor of cosines.
    """
    index = tables.read_metadata(images_path, IndexMetadata)
    templates = ClassTemplates.of(settings.template, settings.class_synonyms)
    templates = replace(templates, written=index.written_names)
    classifier = Classifier.of(class_embeddings(clip, templates, index.classnames))
    described = {
        "classnames": index.classnames,
        "model": settings.clip.model,
        "pretrained": settings.clip.pretrained,
        "class_templates": vars(templates),
        "logit_scale": clip.model.logit_scale.exp().item(),  # type: ignore[operator]
    }
    return classifier, described
