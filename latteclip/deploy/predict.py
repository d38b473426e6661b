"""Classify images with a fine-tuned model, and mark images that show none of its classes.

Letters: B images of a batch, C classes, D embedding width, K best classes of an image.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from latteclip.clip import model as clips
from latteclip.clip.classifier import UnknownDetector, best_classes, load_detector
from latteclip.clip.encode import encoded
from latteclip.clip.image_encoders import encoders_of
from latteclip.core import devices, tables, terminal
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.terminal import one_line, printable
from latteclip.data import loader
from latteclip.data.images import (
    IMAGE_SUFFIXES,
    image_files,
    open_rgb,
    reason,
    to_rgb,
)
from latteclip.deploy.guaranteed_predictions import (
    abstention_threshold,
    result_file,
)

log = logging.getLogger(__name__)
SKIPPED = 3  # exit status: some images could not be decoded
Picture = (
    str | Path | Image.Image | npt.NDArray[Any]
)  # a file, a folder, or pixels
DETECTOR = "classifiers/unknown.safetensors"  # in a dataset's results


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
        if not isinstance(each, str | Path):
            pictures.append(_in_memory(each))
        elif os.path.isdir(each):
            pictures += [str(Path(each, name)) for name in image_files(each)]
        else:
            pictures.append(str(each))
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


def predict(
    model: str,
    paths: Sequence[str],
    /,
    *,
    output: str | None = None,
    topk: int = 1,
    precision: Literal["bf16", "fp16", "float32"] = "bf16",
    device: str,
    threads: int,
    unknown: bool = False,
    abstain: float | None = None,
) -> int:
    """Classify images with the chosen model of a dataset, or another one.

    Images that cannot be decoded are reported on stderr and left out, and the exit status is 3. The
    column score is that of the model's classifier, such as the cosine of image and prototype. The
    column probability is the softmax of the scaled scores over all classes.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        paths: image, or folder with its subfolders
        output: .csv file (default: stdout)
        topk: classes per image, at most all (default: 1)
        precision: arithmetic on a GPU (default: bf16)
        unknown: mark images that belong to none of the classes (unknown_score, is_unknown)
        abstain: mark the least certain predictions (abstained), so that with 95 % probability at
            most this share of all is wrong and not marked; needs answers of latteclip teach
    """
    if output and (not output.endswith(".csv") or os.path.isdir(output)):
        raise UserError(f"--output {output} must be a file that ends in .csv.")
    files = image_paths(paths)
    classifier = Predictor(
        model,
        device=device,
        threads=threads,
        precision=precision,
        unknown=unknown,
        abstain=abstain,
    )
    topk = min(topk, len(classifier.model.classnames))
    names = columns(topk, unknown=unknown, abstain=abstain is not None)

    def cells() -> Iterator[list[Any]]:
        for prediction in classifier.predictions(files, topk):
            if prediction.error:
                log.warning("skipped: %s", one_line(prediction.error))
            else:
                yield prediction.cells()

    n = write_csv(output, names, cells())
    n_skipped = len(files) - n
    log.info("Classified %s, skipped %d.", terminal.counted(n, "image"), n_skipped)
    return SKIPPED if n_skipped else 0


def image_paths(words: Sequence[str]) -> list[str]:
    """Return the image files that words name, without repetitions, in order.

    A word is a file, or a folder, which is searched with all below it. UserError: a word names
    nothing.
    """
    paths: list[str] = []
    for word in words:
        found = pictures_of(word) if os.path.exists(word) else []
        if not found:
            raise UserError(
                f"{one_line(word)} names no file and no folder with an image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); check its spelling."
            )
        paths += found
    return list(dict.fromkeys(paths))


def columns(topk: int, *, unknown: bool, abstain: bool) -> list[str]:
    """Return the columns of a table of predictions of K classes."""
    names = ["path"]
    for rank in range(1, topk + 1):
        end = "" if rank == 1 else f"_{rank}"
        names += [f"classname{end}", f"probability{end}", f"score{end}"]
    if unknown:
        names += ["unknown_score", "is_unknown"]
    if abstain:
        names += ["abstained"]
    return names


def write_csv(
    output: str | None, names: list[str], rows: Iterator[list[Any]]
) -> int:
    """Write rows to a file, whole or not at all, or to stdout (None), and return their number."""
    if output is not None:
        options: Any = {
            "encoding": "utf-8",
            "errors": "surrogateescape",
            "newline": "",
        }
        with (
            replacing(output) as temporary,
            temporary.open("w", **options) as file,
        ):
            return tables.write_csv(file, names, rows)
    # It takes any path as the system gave it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    if sys.stdout.isatty():  # control characters in names would steer it
        rows = (
            [printable(cell) if isinstance(cell, str) else cell for cell in row]
            for row in rows
        )
    return tables.write_csv(sys.stdout, names, rows)
