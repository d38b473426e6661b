"""Classify images with a fine-tuned model, and mark images that show none of its classes.

Letters: B images of a batch, C classes, D embedding width, K best classes of an image.
"""

import contextlib
import csv
import io
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import pyarrow as pa
import torch
from PIL import Image

from latteclip.clip import finetuned, image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import best_classes
from latteclip.clip.encode import encoded
from latteclip.clip.image_encoders import ImageEncoder
from latteclip.clip.ood import UnknownDetector, load_detector
from latteclip.core import devices, tables, terminal
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.terminal import one_line, printable
from latteclip.data import loader
from latteclip.data.folder_files import IMAGE_SUFFIXES, image_files
from latteclip.deploy.guaranteed_predictions import abstention_threshold, result_file

log = logging.getLogger(__name__)
BATCH = 256  # images that are encoded at once
SKIPPED = 3  # exit status: some images could not be decoded
DETECTOR = "classifiers/unknown.safetensors"  # in a dataset's results
ROWS = 10_000  # rows in a Parquet row group: small groups would fill the footer
COLUMNS = pa.schema(
    {
        "path": pa.string(),
        "classname": pa.string(),
        "probability": pa.float32(),
        "score": pa.float32(),
        # Written for several classes. CSV has the three columns above for each class instead.
        "topk_labels": pa.list_(pa.int32()),
        "topk_classnames": pa.list_(pa.string()),
        "topk_scores": pa.list_(pa.float32()),
        "topk_probabilities": pa.list_(pa.float32()),
        "unknown_score": pa.float32(),
        "is_unknown": pa.bool_(),
        "abstained": pa.bool_(),
    }
)
Rows = Iterator["Prediction"]
BEST: list[str] = COLUMNS.names[:4]
TOPK: list[str] = COLUMNS.names[4:8]
UNKNOWN: list[str] = COLUMNS.names[8:10]


@dataclass(frozen=True)
class Prediction:
    """The K best classes of an image, best first, and the probability and score of the best."""

    path: str
    topk_labels: list[int]
    topk_classnames: list[str]
    topk_scores: list[float]  # the classifier's scores, such as cosines
    # Softmax over all classes of logit_scale times the scores.
    topk_probabilities: list[float]
    # A score of `latteclip.clip.ood`, where unknown images are marked.
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
            device: auto, cpu, cuda or mps.
            threads: CPU threads. None: all.
            precision: bf16, fp16 or float32, in which a GPU encodes.
            unknown: whether predictions have unknown_score and is_unknown, by the pretrained CLIP.
            abstain: share of all predictions that may be wrong and not `abstained`, with 95 %
                probability, by the answers of `latteclip teach`. None: `abstained` is None.

        Raises:
            UserError: it is not a fine-tuned model, it lies outside the results that `unknown` and
                `abstain` read, or there are too few answers.
        """
        self.threads = threads or os.cpu_count() or 1
        picked = devices.pick(device, self.threads)
        self.model = finetuned.load(model, picked, precision)
        self.image_encoders = encoders_of(self.model, picked, precision)
        self.pretrained: clips.Clip | None = None
        self.detector: UnknownDetector | None = None
        self.threshold: float | None = None
        if abstain is not None:
            self.threshold = abstention_threshold(self.model, self, abstain)
        if unknown:
            path = result_file(DETECTOR, self.model.folder, "--unknown")
            self.detector = load_detector(path, self.model.classnames)
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
            passes.append(encoded(models, files, BATCH, self.threads))
        for (marks, (features, *others)), *beside in zip(*passes, strict=True):
            for _, error in marks:
                if error:
                    log.warning("skipped: %s", one_line(error))
            readable = torch.tensor([not error for _, error in marks])  # [B]
            parts = [features, *(by_encoder for _, [by_encoder] in beside)]
            features = torch.cat(parts, dim=1)[readable]
            named = [paths[i] for i, error in marks if not error]
            unknown_scores: list[Any] = [None] * len(named)
            if self.detector:
                unknown_scores = self.detector.scores(others[0][readable]).tolist()
            yield from self._predict(named, features, topk, unknown_scores)

    def _predict(
        self,
        paths: list[str],
        features: torch.Tensor,
        topk: int,
        unknown_scores: list[Any],
    ) -> Iterator[Prediction]:
        """Yield the predictions of B images from their features [B, D]."""
        scores = self.model.classifier.scores(features)  # [B, C]
        labels, best = best_classes(scores, topk)  # [B, K]
        every = (self.model.logit_scale * scores).softmax(dim=1)  # [B, C]
        probabilities = every.gather(1, labels)  # [B, K]
        names = self.model.class_templates.as_written(self.model.classnames)
        columns = (part.tolist() for part in (labels, best, probabilities))
        rows = zip(paths, *columns, unknown_scores, strict=True)
        for path, topk_labels, topk_scores, shares, unknown_score in rows:
            yield Prediction(
                path,
                topk_labels,
                [names[label] for label in topk_labels],
                topk_scores,
                shares,
                unknown_score,
                unknown_score > self.detector.threshold if self.detector else None,
                None if self.threshold is None else shares[0] < self.threshold,
            )


def files_of(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Return image files, and those in folders and below them, in order."""
    given = [paths] if isinstance(paths, str | Path) else paths
    files: list[str] = []
    for path in map(str, given):
        files += map(str, image_files(path, deep=True)) if os.path.isdir(path) else [path]
    return files


def encoders_of(
    model: finetuned.FinetunedModel, device: torch.device, precision: str = "bf16"
) -> list[ImageEncoder]:
    """Load the image encoders that a classifier needs, or raise UserError if some are missing."""
    encoders = image_encoders.load_beside(model.folder, device, precision)
    if tuple(encoder.width for encoder in encoders) != model.encoder_widths:
        raise UserError(
            f"{model.folder} lacks image encoders that its classifier needs, in the folder "
            f"{image_encoders.SUBFOLDER}; take another copy of it."
        )
    return encoders


class ReadableFiles(loader.ImageFiles):
    """Image files. A mark is an index, and the reason why it has a blank image instead, or ""."""

    def __getitem__(self, index: int) -> tuple[tuple[int, str], torch.Tensor]:
        try:
            _, image = super().__getitem__(index)
        except UserError as error:
            return (index, str(error)), self.transform(Image.new("RGB", (64, 64)))
        return (index, ""), image


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
    """Classify images with a tuned model.

    Images that cannot be decoded are reported on stderr and left out, and the exit status is 3. The
    column score is that of the model's classifier, such as the cosine of image and prototype. The
    column probability is the softmax of the scaled scores over all classes.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        paths: image, folder with its subfolders, or - for a list on stdin
        output: .csv or .parquet file (default: CSV on stdout)
        topk: classes per image, at most all (default: 1)
        precision: arithmetic on a GPU (default: bf16)
        unknown: mark images that belong to none of the classes (unknown_score, is_unknown)
        abstain: mark the least certain predictions (abstained), so that with 95 % probability at
            most this share of all is wrong and not marked; needs answers of latteclip teach
    """
    write = writer_of(output)  # refuses a bad suffix before the work
    files = image_paths(paths, sys.stdin.buffer)
    classifier = Predictor(
        model,
        device=device,
        threads=threads,
        precision=precision,
        unknown=unknown,
        abstain=abstain,
    )
    topk = min(topk, len(classifier.model.classnames))
    n = Counter[str]()

    def counted() -> Iterator[Prediction]:
        for prediction in classifier.predictions(files, topk):
            n.update(classified=1, abstained=bool(prediction.abstained))
            yield prediction

    further = list(UNKNOWN) if unknown else []
    if abstain is not None:
        further.append("abstained")
    write(counted(), topk, further)
    abstained = f", abstained from {n['abstained']}" if abstain is not None else ""
    n_skipped = len(files) - n["classified"]
    images = terminal.counted(n["classified"], "image")
    log.info("Classified %s%s, skipped %d.", images, abstained, n_skipped)
    return SKIPPED if n_skipped else 0


def image_paths(words: Sequence[str], stdin: IO[bytes]) -> list[str]:
    """Return the image files that words name, without repetitions, in order.

    A word is a file, a folder (searched with all below it), or "-" for a list on stdin with one
    path per line. UserError: a word names nothing.
    """
    paths: list[str] = []
    for word in words:
        if word == "-":
            # File names need not be UTF-8.
            found = stdin.read().decode("utf-8", "surrogateescape").split("\n")
            found = list(filter(None, found))
        else:
            found = files_of(word) if os.path.exists(word) else []
        if not found:
            raise UserError(
                f"{one_line(word)} names no file and no folder with an image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); check its spelling."
            )
        paths += found
    return list(dict.fromkeys(paths))


def writer_of(output: str | None) -> Callable[[Rows, int, list[str]], None]:
    """Return the function that writes predictions of K classes, with further columns.

    The suffix of `output` names the format (none: CSV on stdout), or raises UserError. A file is
    written whole or not at all.
    """
    suffix = ".csv" if output is None else Path(output).suffix.lower()
    if suffix not in FORMATS or (output is not None and os.path.isdir(output)):
        raise UserError(
            f"--output {output} is a folder, or ends in none of {', '.join(FORMATS)}."
        )
    return partial(FORMATS[suffix], output)


@contextlib.contextmanager
def _text(output: str | None) -> Iterator[Any]:
    """Open a new text file, or stdout, that takes any path as the system gave it."""
    if output is not None:
        with (
            replacing(output) as temporary,
            temporary.open(
                "w", encoding="utf-8", errors="surrogateescape", newline=""
            ) as file,
        ):
            yield file
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    # A terminal gets no control characters, which file names may hold.
    terminal = SimpleNamespace(write=lambda text: sys.stdout.write(printable(text)))
    yield terminal if sys.stdout.isatty() else sys.stdout


def _write_csv(output: str | None, rows: Rows, topk: int, further: list[str]) -> None:
    ranks = ["", *(f"_{rank}" for rank in range(2, topk + 1))]
    header = [
        name + rank for rank in ranks for name in ("classname", "probability", "score")
    ]
    with _text(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *header, *further])
        for prediction in rows:
            ranked = zip(
                prediction.topk_classnames,
                prediction.topk_probabilities,
                prediction.topk_scores,
                strict=True,
            )
            cells = [*chain.from_iterable(ranked)]
            cells += [getattr(prediction, name) for name in further]
            writer.writerow(map(tables.csv_cell, [prediction.path, *cells]))


def _write_parquet(output: str, rows: Rows, topk: int, further: list[str]) -> None:
    names = BEST + (TOPK if topk > 1 else []) + further
    schema = pa.schema([COLUMNS.field(name) for name in names])
    with tables.writing(output, schema) as write:
        while some := list(islice(rows, ROWS)):
            columns = {}
            for name in names:
                columns[name] = [_unicode(getattr(row, name)) for row in some]
            write(columns)


FORMATS: dict[str, Any] = {".csv": _write_csv, ".parquet": _write_parquet}


def _unicode(value: object) -> object:
    """Escape bytes of a path that are not UTF-8, which Parquet's strings do not take."""
    if isinstance(value, str):
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return value
