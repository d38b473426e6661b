"""Classify images with a fine-tuned model, and mark images that show none of its classes.

From Python, three lines:

    from latteclip.deploy.predict import Classifier
    classifier = Classifier("results/demo")
    predictions = classifier(["a.jpg", "b.jpg"], topk=3)  # each: .path, .classname, .topk_scores

Letters: B images of a batch, C classes, D embedding width, K best classes of an image.
"""

import contextlib
import csv
import glob
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import pyarrow as pa
import torch
from PIL import Image

from latteclip.clip import finetuned, image_models
from latteclip.clip import model as clips
from latteclip.clip.classifier import best_classes
from latteclip.clip.encode import encoded
from latteclip.clip.ood import UnknownDetector, load_detector
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.terminal import one_line, printable
from latteclip.data import loader
from latteclip.data.folder_files import IMAGE_SUFFIXES, image_files
from latteclip.deploy.abstention import learn_abstention, results_with

log = logging.getLogger(__name__)
STDIN = "-"
DETECTOR = Path("classifiers") / "unknown.safetensors"  # in a dataset's results
ROWS = 10_000  # of a Parquet row group, or a few more
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("classname", pa.string()),  # the best
        ("probability", pa.float32()),
        ("score", pa.float32()),
    ]
)
# Further columns of several classes. CSV has columns for each class instead.
TOPK = pa.schema(
    [
        ("topk_labels", pa.list_(pa.int32())),  # best first
        ("topk_classnames", pa.list_(pa.string())),
        ("topk_scores", pa.list_(pa.float32())),  # of the classifier
        ("topk_probabilities", pa.list_(pa.float32())),  # softmax of the scaled scores
    ]
)
UNKNOWN = pa.schema([("unknown_score", pa.float32()), ("is_unknown", pa.bool_())])
ABSTAINED = pa.schema([("abstained", pa.bool_())])
NOTHING = pa.schema([])


@dataclass(frozen=True)
class Prediction:
    """The K best classes of one image, best first."""

    path: str
    topk_labels: list[int]
    topk_classnames: list[str]
    topk_scores: list[float]  # of the classifier, such as cosines
    topk_probabilities: list[float]  # softmax over all classes of logit_scale times the scores
    # Of `latteclip.clip.ood`, where unknown images are marked.
    unknown_score: float | None = None
    is_unknown: bool | None = None
    abstained: bool | None = None  # whether the best class is too uncertain for the guarantee

    @property
    def classname(self) -> str:
        """The best class."""
        return self.topk_classnames[0]

    @property
    def probability(self) -> float:
        """The probability of the best class."""
        return self.topk_probabilities[0]

    @property
    def score(self) -> float:
        """The score of the best class."""
        return self.topk_scores[0]


class ClassifiedBatch(NamedTuple):
    """The predictions of a batch, and one sentence for each image that was skipped."""

    predictions: list[Prediction]
    skipped: list[str]


class Classifier:
    """A fine-tuned model that classifies image files."""

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int = 256,
        precision: str = "bf16",
        unknown: bool = False,
        abstain: float | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: results/<dataset>, where a model was chosen, or the folder of a model or run.
            device: auto, cpu, cuda or cuda:<n>.
            threads: CPU threads. None: all.
            batch_size: images encoded at once.
            precision: bf16, fp16 or float32, in which a GPU encodes.
            unknown: whether predictions have unknown_score and is_unknown, by the pretrained CLIP.
            abstain: share of all predictions that may be wrong and not `abstained`, with 95 %
                probability, by the answers of `latteclip teach`. None: `abstained` is None.

        Raises:
            UserError: it is not a fine-tuned model, it lies outside the results that `unknown` and
                `abstain` read, or there are too few answers.
        """
        self.threads = threads or os.cpu_count() or 1
        self.batch_size = batch_size
        picked = devices.pick(device, self.threads)
        self.model = finetuned.load(model, picked, precision)
        self.eyes = image_models.load_beside(self.model.folder, picked, precision)
        if tuple(model.width for model in self.eyes) != self.model.eyes_widths:
            raise UserError(
                f"{self.model.folder} lacks image models that its classifier needs, in the folder "
                f"{image_models.EYES}; take another copy of it."
            )
        self.scorer = self.abstention = None
        if abstain is not None:
            self.abstention = learn_abstention(self.model, self, abstain)
            log.info(self.abstention.guarantee)
        if unknown:
            self.scorer = load_unknown_scorer(self.model, picked, precision)

    def __call__(self, paths: Sequence[str | Path], topk: int = 1) -> list[Prediction]:
        """Return the predictions of image files in order, without files that are no image."""
        batches = self.in_batches([str(path) for path in paths], topk)
        return [prediction for batch in batches for prediction in batch.predictions]

    def in_batches(self, paths: Sequence[str], topk: int) -> Iterator[ClassifiedBatch]:
        """Classify image files batch by batch, and log those that are skipped."""
        of_clip: list[Any] = [one.clip for one in (self.model, self.scorer) if one]
        # Each image model has a transform of its own, so it reads the images again.
        passes = [
            encoded(
                models, ReadableFiles(paths, models[0].preprocess), self.batch_size, self.threads
            )
            for models in (of_clip, *([eye] for eye in self.eyes))
        ]
        for ((indices, errors), (features, *others)), *beside in zip(*passes, strict=True):
            features = torch.cat([features, *(found for _, [found] in beside)], dim=1)
            skipped = [error for error in errors if error]
            for sentence in skipped:
                log.warning("skipped: %s", sentence)
            readable = torch.tensor([not error for error in errors])  # [B]
            named = [paths[index] for index in indices[readable].tolist()]
            predictions = self._predict(named, features[readable], topk)
            if self.scorer:
                predictions = self.scorer.with_unknown_scores(predictions, others[0][readable])
            yield ClassifiedBatch(predictions, skipped)

    def _predict(self, paths: list[str], features: torch.Tensor, topk: int) -> list[Prediction]:
        """Return the predictions of B images from their features [B, D]."""
        scores = self.model.classifier.scores(features)  # [B, C]
        labels, best = best_classes(scores, topk)  # [B, K]
        probabilities = (self.model.logit_scale * scores).softmax(dim=1).gather(1, labels)
        names = self.model.words.as_written(self.model.classnames)
        predictions = [
            Prediction(path, own, [names[label] for label in own], row_scores, row_probabilities)
            for path, own, row_scores, row_probabilities in zip(
                paths, labels.tolist(), best.tolist(), probabilities.tolist(), strict=True
            )
        ]
        if self.abstention:
            threshold = self.abstention.threshold
            predictions = [replace(p, abstained=p.probability < threshold) for p in predictions]
        return predictions


@dataclass(frozen=True)
class UnknownScorer:
    """The pretrained CLIP behind a fine-tuned model, with a detector of unknown images."""

    clip: clips.Clip
    detector: UnknownDetector

    def with_unknown_scores(
        self, predictions: Sequence[Prediction], features: torch.Tensor
    ) -> list[Prediction]:
        """Return the predictions of B images with scores from their pretrained features [B, D]."""
        scores = self.detector.scores(features).tolist()
        return [
            replace(one, unknown_score=score, is_unknown=score > self.detector.threshold)
            for one, score in zip(predictions, scores, strict=True)
        ]


def load_unknown_scorer(
    model: finetuned.FinetunedModel, device: torch.device, precision: str
) -> UnknownScorer:
    """Load what `score_unknown` learned about the dataset in whose results a model lies.

    Raises:
        UserError: the model lies elsewhere, or the pretrained CLIP cannot be loaded or is not the
            one that the model was fine-tuned from.
    """
    folder = results_with(DETECTOR, model.folder, "--unknown")
    detector = load_detector(folder / DETECTOR, model.classnames)
    base = detector.described
    clip = clips.load(base["model"], base["pretrained"], device, precision)
    visuals: list[Any] = [one.model.visual for one in (model.clip, clip)]
    if visuals[0].preprocess_cfg != visuals[1].preprocess_cfg:
        raise UserError(
            f"{model.folder} and {base['model']} preprocess images differently, so one was not "
            "fine-tuned from the other; rerun the workflow."
        )
    return UnknownScorer(clip, detector)


class ReadableFiles(loader.ImageFiles):
    """Image files. A file that cannot be decoded gives a blank image.

    A mark is the index and the reason why the file cannot be decoded, or an empty string.
    """

    def __getitem__(self, index: int) -> tuple[tuple[int, str], torch.Tensor]:
        try:
            _, image = super().__getitem__(index)
        except UserError as error:
            return (index, str(error)), self.transform(Image.new("RGB", (64, 64)))
        return (index, ""), image


def predict(
    model: str,
    words: Sequence[str],
    output: str | None,
    *,
    topk: int,
    unknown: bool = False,
    abstain: float | None = None,
    **loading: Any,
) -> int:
    """Classify the images that `words` name, and write the predictions.

    Args:
        model: folder of a fine-tuned model.
        words: see `image_paths`.
        output: a .csv, .jsonl or .parquet file. None: CSV on stdout.
        topk: classes written for each image.
        unknown: as of Classifier.
        abstain: as of Classifier.
        **loading: further arguments of Classifier.

    Returns:
        How many images were skipped.

    Raises:
        UserError: no such format, no image, or as of Classifier.
    """
    further = [*UNKNOWN] * unknown + [*ABSTAINED] * (abstain is not None)
    writer = writing(output, topk, pa.schema(further))  # refuses a bad suffix before the work
    paths = image_paths(words, sys.stdin.buffer)
    classifier = Classifier(model, unknown=unknown, abstain=abstain, **loading)
    n_skipped = n_abstained = 0
    with writer as add:  # last, so that an error leaves nothing on stdout
        for batch in classifier.in_batches(paths, topk):
            add(batch.predictions)
            n_skipped += len(batch.skipped)
            n_abstained += sum(bool(one.abstained) for one in batch.predictions)
    abstained = f", abstained from {n_abstained}" if abstain is not None else ""
    n_classified = len(paths) - n_skipped
    log.info("Classified %d images%s, skipped %d.", n_classified, abstained, n_skipped)
    return n_skipped


# --- image files --------------------------------------------------------------------------------


def image_paths(words: Iterable[str], stdin: IO[bytes]) -> list[str]:
    """Return the image files that words name, without repetitions, in order.

    Args:
        words: files, folders (searched with all below them), globs (`**` for any folders), or "-"
            for a list on stdin with one path per line, or with null characters between them.
        stdin: the stream of that list.

    Raises:
        UserError: a word names nothing.
    """
    paths: list[str] = []
    for word in words:
        paths += _listed(stdin) if word == STDIN else _named(word)
    if not paths:
        raise UserError("No image is named; give images, folders, globs, or a list on stdin by -.")
    return list(dict.fromkeys(paths))


def _listed(stdin: IO[bytes]) -> list[str]:
    """Return the paths of a list, which need not be UTF-8."""
    text = stdin.read().decode("utf-8-sig", "surrogateescape")
    lines = text.split("\0") if "\0" in text else text.replace("\r\n", "\n").split("\n")
    return [line for line in lines if line]


def _named(word: str) -> list[str]:
    matches = [word] if os.path.exists(word) else _matches(word)
    files: list[str] = []
    for match in matches:
        is_folder = os.path.isdir(match)
        files += sorted(map(str, image_files(match, deep=True))) if is_folder else [match]
    if not files:
        raise UserError(
            f"{one_line(word)} names no file and no folder with an image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}); check its spelling."
        )
    return files


def _matches(pattern: str) -> list[str]:
    """Return the paths that match a glob, without hidden ones.

    Unlike glob's, pathlib's `**` follows no links to folders, which may form a loop.
    """
    if "**" not in pattern:
        return sorted(glob.glob(pattern))
    path = Path(pattern)
    try:
        found = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (ValueError, OSError):  # `**` is only a part of a name
        return []
    named = set(path.parts)
    visible = [one for one in found if not any(p.startswith(".") for p in {*one.parts} - named)]
    return sorted(str(one) for one in visible)


# --- prediction files ---------------------------------------------------------------------------

Add = Callable[[Sequence[Prediction]], None]


def writing(
    output: str | None, topk: int, further: pa.Schema = NOTHING
) -> contextlib.AbstractContextManager[Add]:
    """Write predictions piece by piece. A file is written whole or not at all.

    Args:
        output: a file whose suffix names the format. None: CSV on stdout.
        topk: how many classes are written for each image.
        further: columns after those of the classes.

    Returns:
        A context manager that yields a function that takes the next predictions.

    Raises:
        UserError: the suffix names no format, or a folder has the name.
    """
    if output is None:
        return _csv_on_stdout(topk, further)
    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"--output {output} ends in none of {', '.join(FORMATS)}.")
    if os.path.isdir(output):
        raise UserError(f"--output {output} is a folder; name a file.")
    return FORMATS[suffix](output, topk, further)


@contextlib.contextmanager
def _csv_on_stdout(topk: int, further: pa.Schema) -> Iterator[Add]:
    """A terminal gets no control characters, which file names may hold."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    terminal = SimpleNamespace(write=lambda text: sys.stdout.write(printable(text)))
    yield _csv_rows(terminal if sys.stdout.isatty() else sys.stdout, topk, further)


@contextlib.contextmanager
def _csv(output: str, topk: int, further: pa.Schema) -> Iterator[Add]:
    with _text(output) as file:
        yield _csv_rows(file, topk, further)


def _csv_rows(file: Any, topk: int, further: pa.Schema) -> Add:
    """Write CSV with three columns for each of the best classes, best first."""
    writer = csv.writer(file, lineterminator="\n")
    columns = ("classname", "probability", "score")
    places = ["", *(f"_{rank}" for rank in range(2, topk + 1))]
    header = [name + place for place in places for name in columns]
    writer.writerow(["path", *header, *further.names])

    def add(predictions: Sequence[Prediction]) -> None:
        for one in predictions:
            ranked = zip(one.topk_classnames, one.topk_probabilities, one.topk_scores, strict=True)
            cells = [cell for values in ranked for cell in values]
            cells += [""] * (len(header) - len(cells))
            cells += [getattr(one, name) for name in further.names]
            writer.writerow([one.path, *map(tables.csv_cell, cells)])

    return add


@contextlib.contextmanager
def _jsonl(output: str, topk: int, further: pa.Schema) -> Iterator[Add]:
    names = _schema(topk, further).names
    with _text(output) as file:
        yield lambda predictions: file.writelines(
            json.dumps({name: getattr(one, name) for name in names}, ensure_ascii=False) + "\n"
            for one in predictions
        )


@contextlib.contextmanager
def _parquet(output: str, topk: int, further: pa.Schema) -> Iterator[Add]:
    schema = _schema(topk, further)
    buffer: list[Prediction] = []  # small row groups would fill the footer
    with tables.writing(output, schema) as write:

        def flush() -> None:
            write({name: [_unicode(getattr(one, name)) for one in buffer] for name in schema.names})
            buffer.clear()

        def add(predictions: Sequence[Prediction]) -> None:
            buffer.extend(predictions)
            if len(buffer) >= ROWS:
                flush()

        yield add
        if buffer:
            flush()


FORMATS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _schema(topk: int, further: pa.Schema) -> pa.Schema:
    return pa.unify_schemas([SCHEMA, *[TOPK] * (topk > 1), further])


def _unicode(value: object) -> object:
    """Escape bytes of a path that are not UTF-8, which Parquet's strings do not take."""
    if isinstance(value, str):
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return value


@contextlib.contextmanager
def _text(output: str) -> Iterator[IO[str]]:
    """Open a new text file that takes any path as the system gave it."""
    with (
        replacing(output) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file
