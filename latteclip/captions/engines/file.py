"""Captions and class scores that the user brings along, in place of an engine's answers."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.captions.answer_cache import problem
from latteclip.captions.engines.base import LOWEST
from latteclip.captions.requests import Answer
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

SCORES = "scores.file"
OwnScores = tuple[list[int], list[float]]  # classes, and a log-probability of each
TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False}
READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, **TEXT),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", **TEXT),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
}


def read_captions(path: str | None, key: str) -> Mapping[str, str]:
    """Return captions by image_id, with single spaces.

    Args:
        path: a Parquet, CSV, TSV or JSON Lines file with the columns image_id and caption.
        key: of the configuration, that names the file.
    """
    captions = {}
    for image_id, caption in _rows(path, key, ["image_id", "caption"]):
        text = "" if pd.isna(caption) else str(caption)
        if found := problem(Answer(text, "stop", None)):
            raise UserError(f"{key} {path}: the caption of {image_id!r} is invalid: {found}.")
        captions[image_id] = " ".join(text.split())
    return captions


def read_scores(path: str | None, classnames: Sequence[str]) -> Mapping[str, OwnScores]:
    """Return scores by image_id.

    Args:
        path: as above, with the columns image_id, options (lists of class names or of their numbers
            from 0) and log_probabilities (lists of numbers, which may be -inf). In CSV and TSV a
            list is JSON.
        classnames: C of them.
    """
    class_of: dict[Any, int] = {name: number for number, name in enumerate(classnames)}
    class_of |= {number: number for number in range(len(classnames))}
    scores = {}
    for image_id, *cells in _rows(path, SCORES, ["image_id", "options", "log_probabilities"]):
        options, values = map(_list, cells)
        if found := _problem(options, values, class_of):
            raise UserError(f"{SCORES} {path}, image {image_id!r}: {found}.")
        scores[image_id] = [class_of[option] for option in options], [float(v) for v in values]
    return scores


def _rows(path: str | None, key: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return some columns of a file by rows, the first of which is an image_id that is unique."""
    if path is None:
        raise UserError(
            f"captioner.engine file needs {key}; a method does without image or group captions "
            "where its switch image_description or group_description is false."
        )
    reader = READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise UserError(f"{key} {path} does not end in any of {', '.join(READERS)}.")
    try:
        table = reader(path)
    except Exception as error:  # readers fail in many ways on broken files
        raise UserError(f"{key} {path} cannot be read: {one_line(error).rstrip('.')}.") from None
    if missing := set(columns) - set(table.columns):
        raise UserError(f"{key} {path} lacks the columns {sorted(missing)}.")
    image_ids = table[columns[0]].astype(str)
    repeated = image_ids[image_ids.duplicated()]
    if len(repeated):
        raise UserError(f"{key} {path} has two rows for {repeated.iloc[0]!r}; remove one.")
    return list(zip(image_ids, *(table[name] for name in columns[1:]), strict=True))


def _list(cell: Any) -> Sequence[Any]:
    """Return the list in a cell; an empty one where the cell holds something else."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell.replace("-inf", "-Infinity"))
        except (ValueError, RecursionError):
            return []
    values = cell.tolist() if hasattr(cell, "tolist") else cell
    return values if isinstance(values, list) else []


def _problem(options: Sequence[Any], values: Sequence[Any], classes: Mapping[Any, int]) -> str:
    """Return what is wrong with a row; an empty text where nothing is."""
    if not options or len(options) != len(values):
        lengths = f"{len(options)} and {len(values)}"
        return f"options and log_probabilities must be lists of one length, not {lengths}"
    for option in options:
        if not isinstance(option, str | int) or option is True or option is False:
            return f"option {option!r} is neither a class name nor its number"
        if option not in classes:
            return f"option {option!r} is no class of images.parquet"
    if len({classes[option] for option in options}) < len(options):
        return "a class is among the options twice"
    for value in values:
        if not (isinstance(value, int | float) and (value == -math.inf or abs(value) <= -LOWEST)):
            return f"{one_line(repr(value))} is not a log-probability"
    return "every option has the log-probability -inf" if max(values) == -math.inf else ""
