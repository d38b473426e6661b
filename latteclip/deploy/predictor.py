"""A fine-tuned model that classifies images, and marks images that show none of its classes.

Letters: B images of a batch, C classes, D embedding width, K best classes of an image.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from latteclip.clip import model as clips
from latteclip.clip.classifier import UnknownDetector, best_classes, load_detector
from latteclip.clip.encode import encoded
from latteclip.clip.image_encoders import encoders_of
from latteclip.clip.model_files import DETECTOR, result_file
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line
from latteclip.data import loader
from latteclip.data.images import files_of
from latteclip.deploy.guaranteed_predictions import abstention_threshold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The K best classes of an image, best first, and the probability and score of the best."""

    path: str
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

    @property
    def classname(self) -> str:
        return self.topk_classnames[0]

    @property
    def probability(self) -> float:
        return self.topk_probabilities[0]

    @property
    def score(self) -> float:
        return self.topk_scores[0]

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
        self, paths: str | Path | Sequence[str | Path], topk: int = 1
    ) -> list[Prediction]:
        """Return the predictions of image files in order, without files that are no image.

        A folder stands for the image files in it and below it.
        """
        return list(self.predictions(files_of(paths), topk))

    def predictions(self, paths: Sequence[str], topk: int) -> Iterator[Prediction]:
        """Classify image files batch by batch, and log those that are no image."""
        of_clip: list[Any] = [
            model for model in (self.model.clip, self.pretrained) if model
        ]
        # Each image encoder has a transform of its own, so it reads the images again.
        passes = []
        for models in [of_clip, *([encoder] for encoder in self.image_encoders)]:
            files = ReadableFiles(paths, models[0].pixels)
            passes.append(encoded(models, files, self.threads))
        names = self.model.class_templates.as_written(self.model.classnames)
        for (marks, (features, *others)), *beside in zip(*passes, strict=True):
            for _, error in marks:
                if error:
                    log.warning("skipped: %s", one_line(error))
            readable = torch.tensor([not error for _, error in marks])  # [B]
            parts = [features, *(by_encoder for _, [by_encoder] in beside)]
            features = torch.cat(parts, dim=1)[readable]
            named = [paths[i] for i, error in marks if not error]
            unknown_scores: list[Any] = [None] * len(named)
            if self.detector and named:
                unknown_scores = self.detector.scores(others[0][readable]).tolist()
            scores = self.model.classifier.scores(features)  # [B, C]
            best = best_classes(scores, topk)  # [B, K]
            every = (self.model.logit_scale * scores).softmax(dim=1)  # [B, C]
            ranked = (part.tolist() for part in (*best, every.gather(1, best[0])))
            rows = zip(named, *ranked, unknown_scores, strict=True)
            for path, labels, topk_scores, shares, unknown in rows:
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


class ReadableFiles(loader.ImageFiles):
    """Image files. A mark is an index, and the reason why it has a blank image instead, or ""."""

    def __getitem__(self, index: int) -> tuple[tuple[int, str], torch.Tensor]:
        try:
            _, image = super().__getitem__(index)
        except UserError as error:
            return (index, str(error)), self.transform(Image.new("RGB", (64, 64)))
        return (index, ""), image
