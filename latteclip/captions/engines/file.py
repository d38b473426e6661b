"""Captions and class scores that the user brings along, in place of an engine's answers."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.captions.requests import Response
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

NAME = "file"  # in place of an engine's, beside its answers
TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False}
READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, **TEXT),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", **TEXT),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
}


def read_captions(path: str | None, key: str) -> Mapping[str, Response]:
    """Return captions by image_id, with single spaces, from the columns image_id and caption."""
    captions = {}
    for image_id, caption in _rows(path, key, ["image_id", "caption"]):
        words = [] if pd.isna(caption) else str(caption).split()
        captions[image_id] = Response(" ".join(words), "stop", None, engine=NAME)
    return captions


def read_scores(
    path: str | None, key: str, classnames: Sequence[str]
) -> Mapping[str, tuple[list[int], list[float]]]:
    """Return classes by image_id, and a log-probability of each.

    The columns are image_id, options (lists of class names or of their numbers from 0) and
    log_probabilities (lists of numbers, which may be -inf). In CSV and TSV a list is JSON.
    """
    class_of: dict[Any, int] = {name: number for number, name in enumerate(classnames)}
    class_of |= {number: number for number in range(len(classnames))}
    scores = {}
    for image_id, *cells in _rows(path, key, ["image_id", "options", "log_probabilities"]):
        try:
            options, values = map(_list, cells)
            classes = [class_of[option] for option in options]
            numbers = [*map(float, values)]
            if any(isinstance(value, bool) for value in (*options, *values)):
                raise TypeError  # true is no class 1
        except (LookupError, TypeError, ValueError, RecursionError):
            classes = []
            numbers = []
        are_numbers = any(v > -math.inf for v in numbers) and all(
            v < math.inf for v in numbers
        )
        if not (are_numbers and len(set(classes)) == len(classes) == len(numbers)):
            raise UserError(
                f"{key} {path}, image {image_id!r}: options must be different classes, and "
                "log_probabilities as many numbers, not all of them -inf; they are "
                f"{one_line(cells)}."
            )
        scores[image_id] = classes, numbers
    return scores


def _rows(path: str | None, key: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return columns of the file that a key names, by rows. The first is an image_id: unique."""
    reader = READERS.get(Path(path or "").suffix.lower())
    if path is None or reader is None:
        raise UserError(f"{key} {path} does not end in any of {', '.join(READERS)}.")
    try:
        table = reader(path)
    except Exception as error:  # readers fail in many ways on broken files
        raise UserError(
            f"{key} {path} cannot be read: {one_line(error).rstrip('.')}."
        ) from None
    if missing := set(columns) - set(table.columns):
        raise UserError(f"{key} {path} lacks the columns {sorted(missing)}.")
    image_ids = table[columns[0]].astype(str)
    repeated = image_ids[image_ids.duplicated()]
    if len(repeated):
        raise UserError(f"{key} {path} has two rows for {repeated.iloc[0]!r}; remove one.")
    return list(zip(image_ids, *(table[name] for name in columns[1:]), strict=True))


def _list(cell: Any) -> list[Any]:
    return list(
        json.loads(cell.replace("-inf", "-Infinity")) if isinstance(cell, str) else cell
    )
