"""Captions and class scores that the user brings along, in place of an engine's answers."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pandas as pd

from latteclip.captions.requests import Response
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

NAME = "file"  # in place of an engine's, beside its answers
TEXT: dict[str, Any] = {
    "dtype": str,
    "keep_default_na": False,
    "encoding": "utf-8-sig",  # as spreadsheets write it
}
T = TypeVar("T")
log = logging.getLogger(__name__)
READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, sep=_separator(path), **TEXT),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", **TEXT),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
}


def by_image_id(
    found: Mapping[str, T], image_ids: Sequence[str], path: str | None, key: str
) -> dict[str, T]:
    """Return the rows of a file by image_id.

    A row names an image by its image_id, by a path that ends so, or by the name of its file where
    no other image has that name. UserError: two rows name the same image, or no row names any.
    """
    known = set(image_ids)
    of_base: dict[str, list[str]] = defaultdict(list)
    for image_id in image_ids:
        of_base[PurePosixPath(image_id).name].append(image_id)
    rows: dict[str, T] = {}
    named: dict[str, str] = {}
    for name, row in found.items():
        meant = name if name in known else _image_id(name, of_base)
        if meant is None:
            continue
        if meant in rows:
            raise UserError(
                f"{key} {path} has two rows for {meant!r}, called {named[meant]!r} and {name!r}; "
                "remove one."
            )
        rows[meant] = row
        named[meant] = name
    if not rows:
        rows_are = (
            f"its rows are named like {next(iter(found))!r}" if found else "it is empty"
        )
        raise UserError(
            f"{key} {path} names none of the {len(image_ids):,} images: {rows_are}, and images "
            f"like {image_ids[0]!r}; take the image_id of images.parquet, or paths that end so."
        )
    if len(rows) < len(image_ids):
        log.warning(
            "%s %s has no row for %d of %d images.",
            key,
            path,
            len(image_ids) - len(rows),
            len(image_ids),
        )
    return rows


def _image_id(name: str, of_base: Mapping[str, Sequence[str]]) -> str | None:
    """Return the image that a path or the name of a file means, if it means one."""
    place = name.replace("\\", "/")
    alike = of_base.get(PurePosixPath(place).name, ())
    ending = [image_id for image_id in alike if f"/{place}".endswith(f"/{image_id}")]
    if ending:
        return max(ending, key=len)
    return alike[0] if len(alike) == 1 and "/" not in place else None


def _separator(path: str) -> str:
    """Return the character between the columns of a CSV file: many programs write semicolons."""
    with Path(path).open(encoding="utf-8-sig") as file:
        head = file.readline()
    return ";" if head.count(";") > head.count(",") else ","


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
        found = one_line(", ".join(map(str, table.columns)), 120)
        raise UserError(
            f"{key} {path} lacks the columns {', '.join(sorted(missing))}: it has {found}. An "
            "image_id is the path of an image below the folder of images, such as cat/1.jpg."
        )
    image_ids = table[columns[0]].astype(str)
    repeated = image_ids[image_ids.duplicated()]
    if len(repeated):
        raise UserError(f"{key} {path} has two rows for {repeated.iloc[0]!r}; remove one.")
    return list(zip(image_ids, *(table[name] for name in columns[1:]), strict=True))


def _list(cell: Any) -> list[Any]:
    return list(
        json.loads(cell.replace("-inf", "-Infinity")) if isinstance(cell, str) else cell
    )
