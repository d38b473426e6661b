"""Write the pretrained CLIP with a training-free classifier as a model folder."""

import torch
from pydantic import Field

from latteclip.clip import finetuned, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier, save_classifier
from latteclip.config.keys import ClipSection, Section
from latteclip.core import hashing
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
    clip = clips.load(settings.clip.model, settings.clip.pretrained, torch.device("cpu"))
    class_templates = ClassTemplates.described_by(described)
    with replacing(output) as folder:
        clips.save(clip, classifier, described["classnames"], class_templates, folder)
        if settings.encoders:
            models = [
                image_encoders.load(name, torch.device("cpu")) for name in settings.encoders
            ]
            for number, model in enumerate(models):
                image_encoders.save(model, folder / image_encoders.SUBFOLDER / str(number))
            classifier, described = load_classifier(folder / clips.CLASSIFIER)
            widths = [model.width for model in models]
            described |= {
                "image_encoders": settings.encoders,
                finetuned.ENCODER_WIDTHS: widths,
            }
            save_classifier(folder / clips.CLASSIFIER, classifier, described)
            hashing.write_sums(folder)
