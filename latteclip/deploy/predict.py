"""Images from anywhere, classified by a tuned model; and whether they show any of its classes.

From Python, three lines:

    from latteclip.deploy.predict import Classifier
    classifier = Classifier("results/demo")
    predictions = classifier(["a.jpg", "b.jpg"], topk=3)  # each: .path, .classname, .topk_scores

Letters: B images of a batch, C classes, D embedding width, K best classes kept.
"""

import codecs
import glob
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image

from latteclip.clip import finetuned
from latteclip.clip import model as clips
from latteclip.clip.classifier import best_classes
from latteclip.clip.encode import encoded
from latteclip.clip.ood import UnknownDetector, load_detector
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line
from latteclip.data import loader
from latteclip.data.folder_files import IMAGE_SUFFIXES, image_files
from latteclip.deploy.prediction_files import Prediction, writing

log = logging.getLogger(__name__)
STDIN = "-"
DETECTOR = Path("classifiers") / "unknown.safetensors"  # in a dataset's results
ANYWHERE = re.compile(r"(?:^|(?<=/))(?:\*\*/+)*\*\*(?:/+|$)")  # in a glob
MAX_LIST = 2**28  # bytes of a list on stdin: millions of paths


@dataclass(frozen=True)
class Classified:
    """What came of some images."""

    predictions: list[Prediction]
    skipped: list[str] = field(default_factory=list)  # one sentence per image


class Classifier:
    """A tuned model that classifies image files."""

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int = 256,
        precision: str = "bf16",
        unknown: bool = False,
    ) -> None:
        """Open a model.

        Args:
            model: results/<dataset>, where a model was chosen, or the folder of a model or run.
            device: auto, cpu, cuda or cuda:<n>.
            threads: CPU threads; None for all.
            batch_size: images encoded at once.
            precision: bf16, fp16 or float32, in which a GPU encodes.
            unknown: whether predictions have unknown_score and is_unknown, by the pretrained CLIP.

        Raises:
            UserError: it is not a tuned model, or not where unknown images can be told.
        """
        self.threads = threads or os.cpu_count() or 1
        self.batch_size = batch_size
        picked = devices.pick(device, self.threads)
        self.model = finetuned.load(model, picked, precision)
        self.pretrained = pretrained(self.model, picked, precision) if unknown else None

    def __call__(self, paths: Sequence[str | Path], topk: int = 1) -> list[Prediction]:
        """The predictions of image files, in order; those that cannot be decoded are left out."""
        return [
            prediction
            for part in self.in_batches([str(path) for path in paths], topk)
            for prediction in part.predictions
        ]

    def in_batches(self, paths: Sequence[str], topk: int) -> Iterator[Classified]:
        """Classify image files batch by batch; logs what it has to skip."""
        models = [one.clip for one in (self.model, self.pretrained) if one]
        files = ReadableFiles(paths, self.model.clip.preprocess)
        for (indices, faults), (features, *others) in encoded(
            models, files, self.batch_size, self.threads
        ):
            skipped = [fault for fault in faults if fault]
            for sentence in skipped:
                log.warning("skipped: %s", sentence)
            readable = torch.tensor([not fault for fault in faults])  # [B]
            named = [paths[index] for index in indices[readable].tolist()]
            found = self._predict(named, features[readable], topk)
            if self.pretrained:
                found = self.pretrained.told(found, others[0][readable])
            yield Classified(found, skipped)

    def _predict(self, paths: list[str], features: torch.Tensor, topk: int) -> list[Prediction]:
        """Predictions of B images from their features [B, D]."""
        scores = self.model.classifier.scores(features)  # [B, C]
        labels, best = best_classes(scores, topk)  # [B, K]
        probabilities = (self.model.logit_scale * scores).softmax(dim=1).gather(1, labels)
        names = self.model.words.as_written(self.model.classnames)
        rows = zip(paths, labels.tolist(), best.tolist(), probabilities.tolist(), strict=True)
        return [
            Prediction(path, own, [names[label] for label in own], row_scores, row_probabilities)
            for path, own, row_scores, row_probabilities in rows
        ]


@dataclass(frozen=True)
class Pretrained:
    """The CLIP that a model was tuned from, which tells images of no class."""

    clip: clips.Clip
    detector: UnknownDetector

    def told(self, predictions: Sequence[Prediction], features: torch.Tensor) -> list[Prediction]:
        """The predictions of B images, with what their pretrained features [B, D] tell."""
        scores = self.detector.scores(features).tolist()
        return [
            replace(one, unknown_score=score, is_unknown=score > self.detector.threshold)
            for one, score in zip(predictions, scores, strict=True)
        ]


def pretrained(model: finetuned.TunedModel, device: torch.device, precision: str) -> Pretrained:
    """What `score_unknown` learned of the dataset in whose results a model lies.

    Raises:
        UserError: the model lies elsewhere, or the pretrained CLIP cannot be loaded or is another
            than the model was tuned from.
    """
    places = model.folder.absolute().parents[:3]  # of results/<dataset>/<method>/seed<n>/model
    path = next((place / DETECTOR for place in places if (place / DETECTOR).is_file()), None)
    if path is None:
        raise UserError(
            f"{model.folder} is not in the results of a dataset with {DETECTOR}, which --unknown "
            "reads; run the workflow's rule score_unknown, and name the model as it lies there."
        )
    detector = load_detector(path, model.classnames)
    named = detector.described
    clip = clips.load(named["model"], named["pretrained"], device, precision)
    visuals: list[Any] = [one.model.visual for one in (model.clip, clip)]
    if visuals[0].preprocess_cfg != visuals[1].preprocess_cfg:
        raise UserError(
            f"{model.folder} and {named['model']} scale pictures differently, so that one was not "
            "tuned from the other; rerun the workflow."
        )
    return Pretrained(clip, detector)


class ReadableFiles(loader.ImageFiles):
    """Image files of which some may be broken: such a one gives a blank picture.

    A mark is the index and the sentence that says why the image cannot be decoded, or an empty one.
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
    batch_size: int,
    precision: str,
    device: str,
    threads: int,
    unknown: bool = False,
) -> int:
    """Classify the images that `words` name, and write the predictions.

    Args:
        model: folder of a tuned model.
        words: see `image_paths`.
        output: a .csv, .jsonl or .parquet file; None for CSV on stdout.
        topk: classes written for each image.
        batch_size: images encoded at once.
        precision: bf16, fp16 or float32, in which a GPU encodes.
        device: auto, cpu, cuda or cuda:<n>.
        threads: CPU threads.
        unknown: whether images of no class are marked.

    Returns:
        How many images had to be skipped.

    Raises:
        UserError: no such model, no image, or no such format.
    """
    if topk < 1 or batch_size < 1:
        raise UserError(f"--topk {topk} and --batch-size {batch_size} must both be at least 1.")
    # First, so that a bad suffix is refused before the work.
    written = writing(output, topk, unknown=unknown)
    paths = image_paths(words, sys.stdin.buffer)
    classifier = Classifier(
        model,
        device=device,
        threads=threads,
        batch_size=batch_size,
        precision=precision,
        unknown=unknown,
    )
    n_skipped = 0
    with written as add:  # last, so that an error leaves nothing on stdout
        for part in classifier.in_batches(paths, topk):
            add(part.predictions)
            n_skipped += len(part.skipped)
    log.info("Classified %d images, skipped %d.", len(paths) - n_skipped, n_skipped)
    return n_skipped


def image_paths(words: Iterable[str], stdin: IO[bytes]) -> list[str]:
    """The image files that words name, each once, in order.

    Args:
        words: files, folders (searched with all below them), globs (`**` for any folders), or "-"
            for a list on stdin with one path per line, or with null characters between them.
        stdin: where that list is.

    Raises:
        UserError: a word names nothing, or the list cannot be read.
    """
    found: list[str] = []
    for word in words:
        if word == STDIN:
            found += _listed(stdin)
        else:
            found += _named(word)
    if not found:
        raise UserError("No image is named; give images, folders, globs, or a list on stdin by -.")
    return list(dict.fromkeys(found))


def _listed(stdin: IO[bytes]) -> list[str]:
    """The paths of a list, as the system names them: they need not be UTF-8."""
    try:
        content = stdin.read(MAX_LIST + 1)
    except OSError as error:
        raise UserError(f"The list on stdin cannot be read ({error.strerror}).") from None
    if len(content) > MAX_LIST:
        raise UserError(f"The list on stdin has more than {MAX_LIST} bytes; split it.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError("The list on stdin is UTF-16; save it as UTF-8.")
    if b"\0" in content:
        lines = content.split(b"\0")
    else:
        lines = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").split(b"\n")
    return [os.fsdecode(line) for line in lines if line]


def _named(word: str) -> list[str]:
    if os.path.isdir(word):
        below = _images_below(word)
        if not below:
            raise UserError(f"Folder {word} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return below
    if os.path.exists(word):  # False where it is too long for the system
        return [word]
    files = [
        file
        for match in sorted(_matches(word))
        for file in (_images_below(match) if os.path.isdir(match) else [match])
    ]
    if not files:
        raise UserError(
            f"{one_line(word)} is neither a file nor a folder, and fits none; check its spelling."
        )
    return files


def _matches(pattern: str) -> Iterator[str]:
    """Find the files and folders that fit a glob.

    `**` stands for any folders, as in a shell, but for no links to folders: two that lead into
    each other would never end.
    """
    before, *after = ANYWHERE.split(pattern, maxsplit=1)
    if not after:
        yield from glob.iglob(pattern)
        return
    for top in glob.iglob(before) if before else [""]:
        if not after[0]:
            yield top or os.curdir
            continue
        for place, below, _ in os.walk(top or os.curdir):
            below[:] = [name for name in below if not name.startswith(".")]
            inside = os.path.join(place, "")
            start = inside if top else inside.removeprefix(os.path.join(os.curdir, ""))
            yield from _matches(glob.escape(start) + after[0])


def _images_below(folder: str) -> list[str]:
    return sorted(map(str, image_files(folder, deep=True)))
