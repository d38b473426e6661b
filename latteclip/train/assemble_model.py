"""Write the pretrained CLIP with a training-free classifier as a model folder."""

import torch
from pydantic import Field

from latteclip.clip import finetuned, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier, save_classifier
from latteclip.config.keys import ClipSection, Section
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.files import replacing


class PretrainedClip(Section):
    """A CLIP model, and image encoders whose features it classifies too."""

    clip: ClipSection
    encoders: list[str] = Field(default_factory=list)  # their models


def assemble_model(classifier_path: str, settings: PretrainedClip, output: str) -> None:
    """Write a folder that open_clip, `predict` and `export` read like a fine-tuned model."""
    classifier, described = load_classifier(
        classifier_path, model=settings.clip.model, pretrained=settings.clip.pretrained
    )
    cpu = torch.device("cpu")
    clip = clips.load(settings.clip.model, settings.clip.pretrained, cpu)
    encoders = [image_encoders.load(name, cpu) for name in settings.encoders]
    templates = ClassTemplates.described_by(described).described
    described = {"classnames": described["classnames"], **templates}
    if encoders:
        widths = [encoder.width for encoder in encoders]
        described |= {
            "image_encoders": settings.encoders,
            finetuned.ENCODER_WIDTHS: widths,
        }
    with replacing(output) as folder:
        clips.save_network(clip, folder)
        for number, encoder in enumerate(encoders):
            image_encoders.save(encoder, folder / image_encoders.SUBFOLDER / str(number))
        save_classifier(folder / clips.CLASSIFIER, classifier, described)
