"""A fine-tuned model that classifies images, and marks images that show none of its classes.

Letters: B images of a batch, C classes, D embedding width, K best classes of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from latteclip.clip import model as clips
from latteclip.clip.classifier import UnknownDetector, best_classes, load_detector
from latteclip.clip.encode import encoded
from latteclip.clip.image_encoders import encoders_of
from latteclip.clip.model_files import DETECTOR, result_file
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.data import loader
from latteclip.data.images import files_of, open_rgb, reason, to_rgb
from latteclip.deploy.guaranteed_predictions import abstention_threshold

# A file, a folder, or pixels.
Picture = str | Path | Image.Image | npt.NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """The K best classes of an image, best first, or why there are none."""

    path: str  # "" of an image in memory
    topk_labels: list[int]
    topk_classnames: list[str]
    topk_scores: list[float]  # the classifier's scores, such as cosines
    # Softmax over all classes of logit_scale times the scores.
    topk_probabilities: list[float]
    # A score of `latteclip.clip.classifier`, where unknown images are marked.
    unknown_score: float | None = None
    is_unknown: bool | None = None
    # Whether the best class is too uncertain for the guarantee.
    abstained: bool | None = None
    error: str = ""  # why the image cannot be read, and has no classes

    @property
    def classname(self) -> str | None:
        return next(iter(self.topk_classnames), None)

    @property
    def probability(self) -> float | None:
        return next(iter(self.topk_probabilities), None)

    @property
    def score(self) -> float | None:
        return next(iter(self.topk_scores), None)

    def cells(self) -> list[Any]:
        """Return the values of the row of a table of `columns`."""
        ranked = zip(
            self.topk_classnames,
            self.topk_probabilities,
            self.topk_scores,
            strict=True,
        )
        further = (self.unknown_score, self.is_unknown, self.abstained)
        known = [value for value in further if value is not None]
        return [self.path, *chain.from_iterable(ranked), *known]


class Predictor:
    """A fine-tuned model that classifies image files."""

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "bf16",
        unknown: bool = False,
        abstain: float | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: results/<dataset>, where a model was chosen, or the folder of a model or run.
            device: auto, cpu or cuda.
            threads: CPU threads. None: all.
            precision: bf16, fp16 or float32, in which a GPU encodes.
            unknown: whether predictions have unknown_score and is_unknown, by the pretrained CLIP.
            abstain: share of all predictions that may be wrong and not `abstained`, with 95 %
                probability, by the answers of `latteclip teach`. None: `abstained` is None.

        Raises:
            UserError: it is not a fine-tuned model, it lies outside the results that `unknown` and
                `abstain` read, or there are too few answers.
        """
        self.threads = threads or devices.cores()
        picked = devices.pick(device, self.threads)
        self.model = clips.load_finetuned(model, picked, precision)
        self.image_encoders = encoders_of(self.model, picked, precision)
        self.pretrained: clips.Clip | None = None
        self.detector: UnknownDetector | None = None
        self.threshold: float | None = None
        if abstain is not None:
            self.threshold = abstention_threshold(self.model, self, abstain)
        if unknown:
            path = result_file(DETECTOR, self.model.folder, "--unknown")
            self.detector = load_detector(path)
            base = self.detector.described
            self.pretrained = clips.load(
                base["model"], base["pretrained"], picked, precision
            )

    def __call__(
        self, images: Picture | Sequence[Picture], topk: int = 1
    ) -> list[Prediction]:
        """Return the prediction of each image in order, with its error if it cannot be read.

        A folder stands for the image files in it and below it.
        """
        return list(self.predictions(pictures_of(images), topk))

    def predictions(self, paths: Sequence[Any], topk: int) -> Iterator[Prediction]:
        """Classify image files, or pictures in memory, batch by batch."""
        of_clip: list[Any] = [
            model for model in (self.model.clip, self.pretrained) if model
        ]
        # Each image encoder has a transform of its own, so it reads the images again.
        passes = []
        for models in [of_clip, *([encoder] for encoder in self.image_encoders)]:
            files = Pictures(paths, models[0].pixels)
            passes.append(encoded(models, files, self.threads))
        names = self.model.class_templates.as_written(self.model.classnames)
        for (marks, (features, *others)), *beside in zip(*passes, strict=True):
            readable = torch.tensor([not error for _, error in marks])  # [B]
            parts = [features, *(by_encoder for _, [by_encoder] in beside)]
            features = torch.cat(parts, dim=1)[readable]
            unknown_scores: list[Any] = [None] * len(features)
            if self.detector and len(features):
                unknown_scores = self.detector.scores(others[0][readable]).tolist()
            scores = self.model.classifier.scores(features)  # [B, C]
            best = best_classes(scores, topk)  # [B, K]
            every = (self.model.logit_scale * scores).softmax(dim=1)  # [B, C]
            ranked = (part.tolist() for part in (*best, every.gather(1, best[0])))
            rows = zip(*ranked, unknown_scores, strict=True)
            for index, error in marks:
                path = getattr(paths[index], "filename", paths[index])
                path = path if isinstance(path, str) else ""
                if error:
                    yield Prediction(path, [], [], [], [], error=error)
                    continue
                labels, topk_scores, shares, unknown = next(rows)
                yield Prediction(
                    path,
                    labels,
                    [names[label] for label in labels],
                    topk_scores,
                    shares,
                    unknown,
                    unknown > self.detector.threshold if self.detector else None,
                    None if self.threshold is None else shares[0] < self.threshold,
                )


def pictures_of(images: Picture | Sequence[Picture]) -> list[Any]:
    """Return image files, those in folders and below them, and pictures in memory, in order."""
    is_array = isinstance(images, np.ndarray) and images.ndim < 4
    is_one = is_array or isinstance(images, str | Path | Image.Image)
    pictures: list[Any] = []
    for each in cast(Sequence[Any], [images] if is_one else images):
        if isinstance(each, str | Path):
            pictures += files_of(each)
        else:
            pictures.append(_in_memory(each))
    return pictures


def _in_memory(picture: Any) -> Image.Image | UserError:
    """Return a picture in RGB, or why it is none."""
    try:
        is_image = isinstance(picture, Image.Image)
        image = picture.copy() if is_image else Image.fromarray(picture)
        rgb = to_rgb(image)
    except Exception as error:  # decoders fail in many ways
        return UserError(
            f"A {type(picture).__name__} is no image ({reason(error)}); give a path, a PIL image "
            "or an array [H, W, 3] of uint8."
        )
    rgb.filename = getattr(picture, "filename", "")  # type: ignore[attr-defined]
    return rgb


class Pictures(loader.ImageFiles):
    """Images. A mark is an index, and the reason why it has a blank image instead, or ""."""

    def __getitem__(self, index: int) -> tuple[tuple[int, str], torch.Tensor]:
        picture: Any = self.paths[index]
        try:
            if isinstance(picture, UserError):
                raise picture
            if isinstance(picture, str):
                picture = open_rgb(picture)
        except UserError as error:
            return (index, str(error)), self.transform(Image.new("RGB", (64, 64)))
        return (index, ""), self.transform(picture)
