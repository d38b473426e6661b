"""Captions and class scores that the user brings along, in place of an engine's answers."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from latteclip.captions.answer_cache import Answer, problem
from latteclip.captions.engines.base import LOWEST
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

SCORES = "scores.file"
SCORE_COLUMNS = ["image_id", "options", "log_probabilities"]
OwnScores = tuple[list[int], list[float]]  # classes, and a log-probability of each


def _parquet(path: str, columns: Sequence[str]) -> pd.DataFrame:
    found = set(pq.read_schema(path).names)
    return pd.read_parquet(path, columns=[name for name in columns if name in found])


Reader = Callable[[str, Sequence[str]], pd.DataFrame]
READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".csv": lambda path, _: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".tsv": lambda path, _: pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False),
    ".jsonl": lambda path, _: pd.read_json(path, lines=True, dtype=False),
}


def read_captions(path: str | None, kind: str) -> Mapping[str, str]:
    """Return captions by image_id.

    Args:
        path: a Parquet, CSV, TSV or JSON Lines file with the columns image_id and caption.
        kind: images or groups: the key of the configuration that names the file.

    Raises:
        UserError: no such file, or another form.
    """
    key = f"captioner.{kind}_file"
    if path is None:
        raise UserError(
            f"captioner.engine file needs {key}; a method does without these captions where its "
            f"switch {kind.removesuffix('s')}_description is false."
        )
    captions = {}
    for image_id, caption in _rows(path, key, ["image_id", "caption"]):
        text = "" if pd.isna(caption) else str(caption)
        if found := problem(Answer(text, "stop", None)):
            raise UserError(
                f"{key} {path} has a caption for {image_id!r} that is invalid: {found}."
            )
        captions[image_id] = text
    return captions


def read_scores(path: str | None, classnames: Sequence[str]) -> Mapping[str, OwnScores]:
    """Return scores by image_id.

    Args:
        path: a Parquet, CSV, TSV or JSON Lines file with the columns image_id, options (lists of
            class names or of their numbers from 0) and log_probabilities (lists of numbers, which
            may be -inf). In CSV and TSV a list is JSON.
        classnames: C of them.

    Raises:
        UserError: no such file, or another form.
    """
    if path is None:
        raise UserError(f"captioner.engine file needs {SCORES}, or set scores.kind to null.")
    number_of = {name: number for number, name in enumerate(classnames)}
    return {
        image_id: _scores(f"{SCORES} {path}, image {image_id!r}", options, values, number_of)
        for image_id, options, values in _rows(path, SCORES, SCORE_COLUMNS)
    }


def _rows(path: str, key: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return some columns of a file by rows, the first of which is an image_id that is unique.

    Raises:
        UserError: no such file, or another form.
    """
    reader = READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise UserError(f"{key} {path} does not end in any of {', '.join(READERS)}.")
    try:
        table = reader(path, columns)
    except FileNotFoundError:
        raise UserError(f"{key} {path} does not exist.") from None
    except Exception as error:  # readers fail in many ways on broken files
        raise UserError(f"{key} {path} cannot be read: {one_line(error).rstrip('.')}.") from None
    if missing := set(columns) - set(table.columns):
        raise UserError(f"{key} {path} lacks the columns {sorted(missing)}.")
    image_ids = table[columns[0]].astype(str)
    repeated = image_ids[image_ids.duplicated()]
    if len(repeated):
        raise UserError(f"{key} {path} has two rows for {repeated.iloc[0]!r}; remove one.")
    return list(zip(image_ids, *(table[name] for name in columns[1:]), strict=True))


def _scores(where: str, options: Any, values: Any, number_of: Mapping[str, int]) -> OwnScores:
    """Check one row."""
    options, values = _list(options), _list(values)
    if not options or len(options) != len(values):
        raise UserError(
            f"{where}: options and log_probabilities must be lists of one length, not "
            f"{len(options)} and {len(values)}."
        )
    classes = [_class(where, option, number_of) for option in options]
    if len(set(classes)) < len(classes):
        raise UserError(f"{where}: a class is among the options twice.")
    numbers = [_log_probability(where, value) for value in values]
    if max(numbers) == -math.inf:
        raise UserError(f"{where}: every option has the log-probability -inf.")
    return classes, numbers


def _list(cell: Any) -> Sequence[Any]:
    """Return the list in a cell; an empty one where the cell holds something else."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell.replace("-inf", "-Infinity"))
        except (ValueError, RecursionError):
            return []
    values = cell.tolist() if hasattr(cell, "tolist") else cell
    return values if isinstance(values, list) else []


def _class(where: str, option: Any, number_of: Mapping[str, int]) -> int:
    if isinstance(option, str):
        if option in number_of:
            return number_of[option]
    elif isinstance(option, int) and not isinstance(option, bool) and 0 <= option < len(number_of):
        return option
    raise UserError(
        f"{where}: option {option!r} is neither a class name of images.parquet nor a number from 0 "
        f"to {len(number_of) - 1}."
    )


def _log_probability(where: str, value: Any) -> float:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if numeric and (value == -math.inf or LOWEST <= value <= -LOWEST):
        return float(value)
    raise UserError(f"{where}: {one_line(repr(value))} is not a log-probability.")
