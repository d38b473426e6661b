"""Folders of models with classifiers: write one without training, and load any."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field

from latteclip.clip import image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import (
    Classifier,
    classify,
    load_classifier,
    save_classifier,
)
from latteclip.clip.encode import encode_files
from latteclip.config.keys import ClipSection, Section
from latteclip.config.registry import CLIP_CONFIG
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError
from latteclip.core.files import replacing

MODEL = "model"  # the folder's name inside that of a run
ENCODER_WIDTHS = (
    "encoder_widths"  # in the description of a classifier of the features of several models
)


@dataclass(frozen=True)
class FinetunedModel:
    """A CLIP model with its classifier."""

    folder: Path
    clip: clips.Clip
    classifier: Classifier  # classifier of the model's C classes, on the CPU
    classnames: list[str]
    class_templates: ClassTemplates
    # Widths of the features of image encoders that stand beside CLIP's.
    encoder_widths: tuple[int, ...] = ()

    @property
    def logit_scale(self) -> float:
        """The exponential of the model's parameter: the factor of cosines in a softmax."""
        return self.clip.model.logit_scale.exp().item()  # type: ignore[operator]

    def classify(
        self, paths: Sequence[str], k: int, threads: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k best classes of N image files and their scores, both [N, K]."""
        features = encode_files(self.clip, paths, threads)
        return classify(features, self.classifier, k)


def load(
    model: str | Path,
    device: torch.device,
    precision: str = "bf16",
    *,
    classnames: Sequence[str] | None = None,
) -> FinetunedModel:
    """Load a fine-tuned model from the folder that `find` finds.

    UserError: it is not a fine-tuned model, a file is broken, or it has other `classnames`.
    """
    folder = find(model)
    clip = clips.load(f"local-dir:{folder}", None, device, precision)
    expected = {} if classnames is None else {"classnames": list(classnames)}
    path = folder / clips.CLASSIFIER
    classifier, described = load_classifier(path, **expected)
    widths = described.get(ENCODER_WIDTHS, [])
    are_widths = isinstance(widths, list) and all(
        type(size) is int and size > 0 for size in widths
    )
    width = clip.config["embed_dim"] + (sum(widths) if are_widths else 0)
    has_width = are_widths and classifier.weights.shape[1] == width
    if not described.get("classnames") or not has_width:
        raise UserError(
            f"{path} has no classnames, or no rows of the width {width} of the model beside it; "
            "put the files of one training together."
        )
    return FinetunedModel(
        folder,
        clip,
        classifier,
        described["classnames"],
        ClassTemplates.described_by(described),
        tuple(widths),
    )


def find(model: str | Path) -> Path:
    """Return the folder of a fine-tuned model, also from the folder of its run or dataset."""
    for folder in (Path(model), Path(model) / MODEL):
        if all((folder / name).is_file() for name in (CLIP_CONFIG, clips.CLASSIFIER)):
            return folder
    raise UserError(
        f"{model} has no chosen model ({CLIP_CONFIG} with {clips.CLASSIFIER} beside it); run the "
        "whole workflow, which chooses one, or name results/<dataset>/<method>/seed0/model."
    )


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
            ENCODER_WIDTHS: widths,
        }
    with replacing(output) as folder:
        clips.save_network(clip, folder)
        for number, encoder in enumerate(encoders):
            image_encoders.save(encoder, folder / image_encoders.SUBFOLDER / str(number))
        save_classifier(folder / clips.CLASSIFIER, classifier, described)
