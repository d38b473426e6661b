"""Scores that the user brings along, in place of an engine's."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from latteclip.captions.class_questions import RowScores
from latteclip.captions.engines.base import OWN
from latteclip.captions.own_files import read_own
from latteclip.captions.scores import LOWEST
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

KEY = "scores.file"
COLUMNS = ["image_id", "options", "log_probabilities"]


class OwnScores:
    """The scores of images as their file has them."""

    def __init__(self, path: str | None, classnames: Sequence[str]) -> None:
        self._scores = read_own_scores(path, classnames)

    def __call__(self, image_id: str) -> RowScores:
        """What the file says of an image."""
        missing = RowScores(error="the file has no scores of it", engine=OWN)
        return self._scores.get(image_id, missing)


def read_own_scores(path: str | None, classnames: Sequence[str]) -> Mapping[str, RowScores]:
    """Scores by image_id.

    Args:
        path: a Parquet, CSV, TSV or JSON Lines file with the columns image_id, options (lists of
            class names or of their numbers from 0) and log_probabilities (lists of numbers, which
            may be -inf). In CSV and TSV a list is JSON.
        classnames: C of them.

    Raises:
        UserError: no such file, or another form.
    """
    if path is None:
        raise UserError(f"captioner.engine file needs {KEY}, or set scores.kind to null.")
    table = read_own(path, KEY, COLUMNS)
    number_of = {name: number for number, name in enumerate(classnames)}
    found: dict[str, RowScores] = {}
    for image_id, options, values in zip(*(table[name] for name in COLUMNS), strict=True):
        where = f"{KEY} {path}, image {image_id!r}"
        if str(image_id) in found:
            raise UserError(f"{where}: there are two rows of it; keep one.")
        found[str(image_id)] = _row(where, _list(options), _list(values), number_of)
    return found


def _list(cell: Any) -> Sequence[Any]:
    """A list from a cell; an empty one where it holds something else."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell.replace("-inf", "-Infinity"))
        except (ValueError, RecursionError):
            return []
    values = cell.tolist() if hasattr(cell, "tolist") else cell
    return values if isinstance(values, list) else []


def _row(
    where: str, options: Sequence[Any], values: Sequence[Any], number_of: Mapping[str, int]
) -> RowScores:
    """One row, checked."""
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
    return RowScores(classes, numbers, engine=OWN)


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
