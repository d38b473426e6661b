"""Captions and class scores that the user brings along, in place of an engine's answers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from latteclip.captions.engine import Response
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line
from latteclip.core.user_tables import list_of, read_table, rows_of

NAME = "file"  # stands beside its answers as the name of an engine


def read_captions(path: str | None, key: str) -> Mapping[str, Response]:
    """Return captions by image_id, with single spaces, from the columns image_id and caption."""
    captions = {}
    columns = ["image_id", "caption"]
    for image_id, caption in rows_of(read_table(path, key), path, key, columns):
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
    columns = ["image_id", "options", "log_probabilities"]
    for image_id, *cells in rows_of(read_table(path, key), path, key, columns):
        try:
            options, values = map(list_of, cells)
            classes = [class_of[option] for option in options]
            numbers = [float(value) for value in values]
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
