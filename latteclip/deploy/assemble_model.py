"""Write the pretrained CLIP with a training-free classifier as a model folder."""

from dataclasses import dataclass

import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.files import replacing


@dataclass(frozen=True)
class PretrainedClip:
    """The section `clip`."""

    model: str
    pretrained: str | None
    precision: str = "bf16"  # of inference; not used here


def assemble_model(classifier_path: str, settings: PretrainedClip, output: str) -> None:
    """Write a folder that open_clip, `predict` and `export` read like a fine-tuned model.

    Raises:
        UserError: the classifier is missing or of another CLIP.
    """
    classifier, described = load_classifier(
        classifier_path, model=settings.model, pretrained=settings.pretrained
    )
    clip = clips.load(settings.model, settings.pretrained, torch.device("cpu"))
    words = ClassTemplates.described_by(described)
    with replacing(output) as folder:
        clips.save(clip, classifier, described["classnames"], words, folder)
