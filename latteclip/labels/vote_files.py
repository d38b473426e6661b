"""Read votes that the user brings along: a file of images with classes or probabilities."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import one_line
from latteclip.core.user_tables import (
    by_image_id,
    list_of,
    numbers_of_classes,
    read_table,
    rows_of,
)

TOLERANCE = 0.01  # largest error of a sum of probabilities
MISSING = 0.05  # share of the images that a file may lack, unless the labeller has a share
FORMS = "class; or options and probabilities, or log_probabilities; or probabilities of all classes"
Vote = tuple[list[int], list[float]]  # classes, and the log-probability of each


def read_file(
    images_path: str, file: str | None, labeller: str | None, share: float | None
) -> tuple[list[str], list[list[int]], list[list[float]]]:
    """Return the user's votes for images that are not in the test split.

    They are image ids, classes, and the log-probability of each class.
    """
    index, _ = tables.read_unlabelled(images_path, training=True)
    metadata = tables.read_metadata(images_path, IndexMetadata)
    key = f"Labeller {labeller}: the file"
    ids = index["image_id"].to_pylist()
    votes = by_image_id(read_votes(file, key, metadata), ids, file, key)
    cells = [votes.get(image_id) for image_id in ids]
    n = len(ids) - cells.count(None)
    wanted = share or 1 - MISSING
    if n < math.floor(wanted * len(ids)):
        at_most = math.floor(1000 * n / len(ids)) / 1000
        example = next(ids[row] for row, one in enumerate(cells) if one is None)
        raise UserError(
            f"{key} {file} has rows for {n} of {len(ids)} images, and none for "
            f"{example!r}; add the others, or set share of the labeller to {at_most:g}."
        )
    options = [one[0] if one else [] for one in cells]
    values = [one[1] if one else [] for one in cells]
    return ids, options, values


def read_votes(path: str | None, key: str, index: IndexMetadata) -> dict[str, Vote]:
    """Return the votes of a file by image_id, without options where a cell is empty.

    Classes are those of `numbers_of_classes`. UserError names the file and the image.
    """
    table = read_table(path, key)
    class_of = numbers_of_classes(index.classnames, index.written_names)
    columns, read = _form(table, path, key)
    votes: dict[str, Vote] = {}
    for image_id, *cells in rows_of(table, path, key, ["image_id", *columns]):
        if all(_is_empty(cell) for cell in cells):
            votes[image_id] = ([], [])
            continue
        try:
            votes[image_id] = read(cells, class_of, len(index.classnames))
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            reason = (
                error.args[0] if isinstance(error, _NoVoteError) else f"they are no {FORMS}"
            )
            raise UserError(
                f"{key} {path}, image {image_id!r}: {reason}; the columns {', '.join(columns)} are "
                f"{one_line(', '.join(map(str, cells)), 120)}. Correct the file."
            ) from None
    return votes


class _NoVoteError(ValueError):
    """Votes that are none, with the reason."""


def _form(
    table: pd.DataFrame, path: str | None, key: str
) -> tuple[list[str], Callable[..., Vote]]:
    """Return the columns of the votes, and the function that reads their cells."""
    has = set(table.columns)
    if "class" in has:
        return ["class"], _of_class
    if {"options", "log_probabilities"} <= has:
        return ["options", "log_probabilities"], _of_log_probabilities
    if {"options", "probabilities"} <= has:
        return ["options", "probabilities"], _of_probabilities
    if "probabilities" in has:
        return ["probabilities"], _of_all_classes
    raise UserError(f"{key} {path} has no votes; beside image_id it needs {FORMS}.")


def _is_empty(cell: Any) -> bool:
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and not cell)


def _class(name: Any, class_of: dict[Any, int]) -> int:
    if isinstance(name, bool) or name not in class_of:
        hint = "; write names of classes as text" if isinstance(name, int) else ""
        raise _NoVoteError(f"{one_line(repr(name), 60)} is no class of this dataset{hint}")
    return class_of[name]


def _of_class(cells: Sequence[Any], class_of: dict[Any, int], _: int) -> Vote:
    return [_class(cells[0], class_of)], [0.0]


def _numbers(cell: Any) -> list[float]:
    return [float(value) for value in list_of(cell)]


def _options(cell: Any, class_of: dict[Any, int]) -> list[int]:
    options = [_class(name, class_of) for name in list_of(cell)]
    if len(set(options)) < len(options):
        raise _NoVoteError("a class is there twice")
    return options


def _of_log_probabilities(cells: Sequence[Any], class_of: dict[Any, int], _: int) -> Vote:
    classes = _options(cells[0], class_of)
    values = _numbers(cells[1])
    if len(values) != len(classes):
        raise _NoVoteError(f"there are {len(classes)} options and {len(values)} numbers")
    are_numbers = all(value < math.inf for value in values)
    if not are_numbers or max(values, default=-math.inf) == -math.inf:
        raise _NoVoteError("log_probabilities are no numbers, or all -inf")
    return classes, values


def _of_probabilities(cells: Sequence[Any], class_of: dict[Any, int], _: int) -> Vote:
    classes = _options(cells[0], class_of)
    return _normal(classes, _numbers(cells[1]))


def _of_all_classes(cells: Sequence[Any], _: dict[Any, int], n_classes: int) -> Vote:
    return _normal(list(range(n_classes)), _numbers(cells[0]))


def _normal(classes: list[int], values: list[float]) -> Vote:
    """Return the vote by probabilities of classes, of which 0 is left out."""
    if len(values) != len(classes):
        raise _NoVoteError(
            f"there are {len(classes)} classes and {len(values)} probabilities"
        )
    if not all(value >= 0 for value in values):
        raise _NoVoteError("a probability is negative or no number")
    total = sum(values)
    if abs(total - 1) > TOLERANCE:
        raise _NoVoteError(f"probabilities sum to {total:.3g}, not to 1")
    options = []
    logs = []
    for number, value in zip(classes, values, strict=True):
        if value > 0:
            options.append(number)
            logs.append(math.log(value))
    return options, logs
