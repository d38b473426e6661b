"""Write the pretrained CLIP with a training-free classifier as a model folder."""

from dataclasses import dataclass, field

import torch

from latteclip.clip import finetuned, image_models
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
    eyes: list[str] = field(default_factory=list)  # image models whose features it classifies too


def assemble_model(classifier_path: str, settings: PretrainedClip, output: str) -> None:
    """Write a folder that open_clip, `predict` and `export` read like a fine-tuned model."""
    classifier, described = load_classifier(
        classifier_path, model=settings.model, pretrained=settings.pretrained
    )
    clip = clips.load(settings.model, settings.pretrained, torch.device("cpu"))
    words = ClassTemplates.described_by(described)
    with replacing(output) as folder:
        clips.save(clip, classifier, described["classnames"], words, folder)
        if settings.eyes:
            models = [image_models.load(name, torch.device("cpu")) for name in settings.eyes]
            for number, model in enumerate(models):
                image_models.save(model, folder / image_models.EYES / str(number))
            classifier, described = load_classifier(folder / clips.CLASSIFIER)
            widths = [model.width for model in models]
            described |= {"eyes": settings.eyes, finetuned.EYES_WIDTHS: widths}
            save_classifier(folder / clips.CLASSIFIER, classifier, described)
            hashing.write_sums(folder)
