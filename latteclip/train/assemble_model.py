"""Write the pretrained CLIP with a training-free classifier as a model folder."""

from dataclasses import dataclass, field

import torch

from latteclip.clip import finetuned, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier, save_classifier
from latteclip.core import hashing
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.files import replacing


@dataclass(frozen=True)
class PretrainedClip:
    """The section `clip`."""

    model: str
    pretrained: str | None
    precision: str = "bf16"  # of inference; not used here
    image_encoders: list[str] = field(
        default_factory=list
    )  # image encoders whose features it classifies too


def assemble_model(classifier_path: str, settings: PretrainedClip, output: str) -> None:
    """Write a folder that open_clip, `predict` and `export` read like a fine-tuned model."""
    classifier, described = load_classifier(
        classifier_path, model=settings.model, pretrained=settings.pretrained
    )
    clip = clips.load(settings.model, settings.pretrained, torch.device("cpu"))
    class_templates = ClassTemplates.described_by(described)
    with replacing(output) as folder:
        clips.save(clip, classifier, described["classnames"], class_templates, folder)
        if settings.image_encoders:
            models = [
                image_encoders.load(name, torch.device("cpu")) for name in settings.image_encoders
            ]
            for number, model in enumerate(models):
                image_encoders.save(model, folder / image_encoders.SUBFOLDER / str(number))
            classifier, described = load_classifier(folder / clips.CLASSIFIER)
            widths = [model.width for model in models]
            described |= {
                "image_encoders": settings.image_encoders,
                finetuned.ENCODER_WIDTHS: widths,
            }
            save_classifier(folder / clips.CLASSIFIER, classifier, described)
            hashing.write_sums(folder)
