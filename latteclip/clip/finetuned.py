"""Load the folder of a fine-tuned model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latteclip.clip import clip_config, image_encoder_files, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import (
    Classifier,
    classify,
    load_classifier,
    save_classifier,
)
from latteclip.clip.encode import encode_files
from latteclip.config.hub_names import CLIP_CONFIG
from latteclip.core import hashing
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError

STUDENT_SCALE = "student_scale"  # in the description of a student's classifier
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
    # The factor of cosines in a softmax where `clip` is no CLIP but a student of timm.
    student_scale: float | None = None

    @property
    def logit_scale(self) -> float:
        """The exponential of the model's parameter: the factor of cosines in a softmax."""
        if self.student_scale is not None:
            return self.student_scale
        return self.clip.model.logit_scale.exp().item()  # type: ignore[operator]

    def classify(
        self, paths: Sequence[str], k: int, batch_size: int, threads: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k best classes of N image files and their scores, both [N, K]."""
        features = encode_files(self.clip, paths, batch_size, threads)
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
    is_student = not (folder / CLIP_CONFIG).is_file()
    load_network = image_encoders.load if is_student else _load_clip
    clip = load_network(f"local-dir:{folder}", device, precision)
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
    scale = described.get(STUDENT_SCALE)
    if is_student and not (isinstance(scale, float) and 0 < scale < math.inf):
        raise UserError(f"{path} lacks {STUDENT_SCALE} of a student; {clip_config.REMEDY}.")
    return FinetunedModel(
        folder,
        clip,
        classifier,
        described["classnames"],
        ClassTemplates.described_by(described),
        tuple(widths),
        scale if is_student else None,
    )


def _load_clip(name: str, device: torch.device, precision: str) -> clips.Clip:
    return clips.load(name, None, device, precision)


def save_student(
    student: image_encoders.ImageEncoder,
    classifier: Classifier,
    described: Mapping[str, Any],
    scale: float,
    folder: Path,
) -> None:
    """Write a new folder that `load` reads: a network of timm, a classifier and sums."""
    image_encoders.save_tuned(student, folder)
    described = {**described, STUDENT_SCALE: scale}
    save_classifier(folder / clips.CLASSIFIER, classifier, described)
    hashing.write_sums(folder)


def find(model: str | Path) -> Path:
    """Return the folder of a fine-tuned model, also from the folder of its run or dataset."""
    for folder in (Path(model), Path(model) / MODEL):
        configs = [folder / CLIP_CONFIG, folder / image_encoder_files.CONFIG]
        if (folder / clips.CLASSIFIER).is_file() and any(map(Path.is_file, configs)):
            return folder
    if others := sorted(map(str, Path(model).glob("*/seed*/model"))):
        raise UserError(
            f"{model} has no chosen model: run the whole workflow, which chooses one, or name one "
            f"that is there: {', '.join(others)}."
        )
    raise UserError(
        f"{model} is not a fine-tuned model: it has no {CLIP_CONFIG} with {clips.CLASSIFIER} "
        "beside it; give results/<dataset> where a model was chosen, or a folder such as "
        "results/<dataset>/<method>/seed0/model."
    )
