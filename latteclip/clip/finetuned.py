"""A tuned model as people hold it: the folder that fine-tuning wrote, opened.

Letters: C classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, load_classifier
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError
from latteclip.data.clip_config import CONFIG

log = logging.getLogger(__name__)

MODEL = "model"  # the folder's name inside that of a run


@dataclass(frozen=True)
class TunedModel:
    """A CLIP model with the classifier that was tuned with it."""

    folder: Path
    clip: clips.Clip
    classifier: Classifier  # of its C classes, on the CPU
    classnames: list[str]
    words: ClassTemplates  # how they were put into words

    @property
    def logit_scale(self) -> float:
        """The exponential of the model's parameter: the factor of cosines in a softmax."""
        return self.clip.model.logit_scale.exp().item()  # type: ignore[operator]


def find(model: str | Path) -> Path:
    """The folder of a tuned model; that of its run, or of a dataset, will do.

    Raises:
        UserError: it is not a tuned model.
    """
    for folder in (Path(model), Path(model) / MODEL):
        if (folder / clips.CLASSIFIER).is_file() and (folder / CONFIG).is_file():
            return folder
    raise UserError(
        f"{model} is not a tuned model: it has no {CONFIG} with {clips.CLASSIFIER} beside it; give "
        "results/<dataset> where a model was chosen, or a folder such as "
        "results/<dataset>/<method>/seed0/model."
    )


def load(
    model: str | Path,
    device: torch.device,
    precision: str = "bf16",
    *,
    classnames: Sequence[str] | None = None,
) -> TunedModel:
    """Open a tuned model.

    Args:
        model: its folder, or that of its run.
        device: where it is to live.
        precision: bf16, fp16 or float32, in which a GPU encodes.
        classnames: the C classes that it must have been tuned for; None for any.

    Raises:
        UserError: it is not a tuned model, a file of it is broken, it is of other classes, or its
            classifier is for features of another width.
    """
    folder = find(model)
    clip = clips.load(f"local-dir:{folder}", None, device, precision)
    expected = {} if classnames is None else {"classnames": list(classnames)}
    classifier, described = load_classifier(folder / clips.CLASSIFIER, **expected)
    path, names = folder / clips.CLASSIFIER, described.get("classnames")
    if not names:
        raise UserError(f"{path} does not say of which classes it is; {clips.REMEDY}.")
    width, wanted = classifier.weights.shape[1], clip.config["embed_dim"]
    if width != wanted:
        raise UserError(
            f"{path} has rows of width {width}, but the features of the model beside it have "
            f"{wanted}; put the two files of one training together."
        )
    return TunedModel(folder, clip, classifier, names, ClassTemplates.described_by(described))
