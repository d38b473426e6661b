"""Predictions as CSV, JSON lines or Parquet, written as they come.

Letters: K best classes of an image.
"""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from latteclip.core import tables
from latteclip.core.errors import UserError, full_output
from latteclip.core.files import replacing
from latteclip.core.terminal import printable

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("classname", pa.string()),  # the best
        ("probability", pa.float32()),
        ("score", pa.float32()),
    ]
)

# Further columns where several classes are asked for, except in CSV, which has columns for each.
TOPK = pa.schema(
    [
        ("topk_labels", pa.list_(pa.int32())),  # best first
        ("topk_classnames", pa.list_(pa.string())),
        ("topk_scores", pa.list_(pa.float32())),  # of the classifier
        ("topk_probabilities", pa.list_(pa.float32())),  # softmax of the scaled scores
    ]
)

ROWS = 10_000  # of a row group, or few more

# What is further said where unknown images are asked for.
UNKNOWN = pa.schema([("unknown_score", pa.float32()), ("is_unknown", pa.bool_())])


@dataclass(frozen=True)
class Prediction:
    """The K best classes of one image, best first."""

    path: str
    topk_labels: list[int]
    topk_classnames: list[str]
    topk_scores: list[float]  # of the classifier, such as cosines
    topk_probabilities: list[float]  # softmax over all classes of logit_scale times the scores
    # Of `latteclip.clip.ood`, where it was asked for.
    unknown_score: float | None = None
    is_unknown: bool | None = None

    @property
    def classname(self) -> str:
        """The best class."""
        return self.topk_classnames[0]

    @property
    def probability(self) -> float:
        """That of the best class."""
        return self.topk_probabilities[0]

    @property
    def score(self) -> float:
        """That of the best class."""
        return self.topk_scores[0]


Add = Callable[[Sequence[Prediction]], None]


def writing(
    output: str | None, topk: int, *, unknown: bool = False
) -> contextlib.AbstractContextManager[Add]:
    """Write predictions piece by piece; a file is written whole or not at all.

    Args:
        output: a file whose suffix names the format; None for CSV on stdout.
        topk: how many classes are written of each image.
        unknown: whether the columns of UNKNOWN are written.

    Returns:
        A context manager that yields what takes the next predictions.

    Raises:
        UserError: the suffix names no format, or a folder has the name.
    """
    if output is None:
        return _stdout(topk, unknown)
    formats = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    suffix = Path(output).suffix.lower()
    if suffix not in formats:
        raise UserError(f"--output {output} ends in none of {', '.join(formats)}.")
    if os.path.isdir(output):
        raise UserError(f"--output {output} is a folder; name a file.")
    return formats[suffix](output, topk, unknown)


class _Output:
    """The standard output, which may be full.

    A terminal is told nothing that it would obey, such as a file's name may hold.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_terminal = stream, stream.isatty()

    def write(self, text: str) -> int:
        try:
            return self._stream.write(printable(text) if self._is_terminal else text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(full_output(error)) from None


@contextlib.contextmanager
def _stdout(topk: int, unknown: bool) -> Iterator[Add]:
    if isinstance(sys.stdout, io.TextIOWrapper):  # as the files below are
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    yield _csv_rows(_Output(sys.stdout), topk, unknown)


@contextlib.contextmanager
def _csv(output: str, topk: int, unknown: bool) -> Iterator[Add]:
    with replacing(output) as temporary, _text(temporary) as file:
        yield _csv_rows(file, topk, unknown)


@contextlib.contextmanager
def _jsonl(output: str, topk: int, unknown: bool) -> Iterator[Add]:
    names = _schema(topk, unknown).names
    with replacing(output) as temporary, _text(temporary) as file:
        yield lambda predictions: file.writelines(
            json.dumps({name: getattr(prediction, name) for name in names}, ensure_ascii=False)
            + "\n"
            for prediction in predictions
        )


@contextlib.contextmanager
def _parquet(output: str, topk: int, unknown: bool) -> Iterator[Add]:
    schema = _schema(topk, unknown)
    waiting: list[Prediction] = []  # of a row group: the footer tells of each, and is held

    with tables.writing(output, schema) as write:

        def end_group() -> None:
            write(
                {name: [_unicode(getattr(one, name)) for one in waiting] for name in schema.names}
            )
            waiting.clear()

        def add(predictions: Sequence[Prediction]) -> None:
            waiting.extend(predictions)
            if len(waiting) >= ROWS:
                end_group()

        yield add
        if waiting:
            end_group()


def _schema(topk: int, unknown: bool) -> pa.Schema:
    more = [TOPK] * (topk > 1) + [UNKNOWN] * unknown
    return pa.unify_schemas([SCHEMA, *more])


def _unicode(value: object) -> object:
    """A path with the bytes that are not UTF-8 spelt out, as Parquet's strings need it."""
    if isinstance(value, str):
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return value


def _text(path: Path) -> TextIO:
    """A new text file that takes any path as the system gave it."""
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def _csv_rows(file: TextIO | _Output, topk: int, unknown: bool) -> Add:
    """CSV with three columns for each of the best classes; those of the best come first."""
    writer = csv.writer(file, lineterminator="\n")
    columns = ("classname", "probability", "score")
    places = ["" if rank == 0 else f"_{rank + 1}" for rank in range(topk)]
    last = UNKNOWN.names if unknown else []
    writer.writerow(["path", *(name + place for place in places for name in columns), *last])

    def add(predictions: Sequence[Prediction]) -> None:
        for one in predictions:
            ranked = zip(one.topk_classnames, one.topk_probabilities, one.topk_scores, strict=True)
            cells = [
                cell
                for name, probability, score in ranked
                for cell in (name, f"{probability:.6f}", f"{score:.6f}")
            ]
            cells += [""] * (3 * topk - len(cells))
            if unknown:
                cells += [f"{one.unknown_score:.6f}", str(one.is_unknown).lower()]
            writer.writerow([one.path, *cells])

    return add
