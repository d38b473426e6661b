"""Rows of a Parquet file as Hugging Face `datasets` writes them: an image's bytes and a label.

Only the labels are read; the images stay where they are.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latteclip.core.errors import UserError, first_line
from latteclip.data import members
from latteclip.data.tar_shards import MAX_ENTRIES, Sample, checked_label

LABEL = "label"  # the column unless another one is named
NUMBERS_AT_ONCE = 2**16  # labels
FEATURES = b"huggingface"  # the key of metadata in which `datasets` describes columns


def samples(shard: Path, label: str | None) -> Iterator[Sample]:
    """The images of a file in order; without a column of labels they have none.

    Args:
        shard: the Parquet file.
        label: the column of labels; None: LABEL, if it is there.

    Raises:
        UserError: the file is damaged, holds no images, or lacks the column.
    """
    with _opened(shard) as file:
        members.image_column(file)
        if file.metadata.num_rows > MAX_ENTRIES:
            raise ValueError(f"it has more than {MAX_ENTRIES} rows")
        number = 0
        for group in range(file.num_row_groups):
            members.check_group(file, group)
            for row, value in enumerate(_labels(file, group, label)):
                found = checked_label(value, f"{shard}: the label of row {number}")
                yield Sample(str(number), f"{group}+{row}", found)
                number += 1


def classnames(shard: Path, label: str | None) -> list[str] | None:
    """The names of the classes in label order, where the file tells them.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(shard) as file:
        try:
            described = json.loads(file.schema_arrow.metadata[FEATURES])
            names = described["info"]["features"][label or LABEL]["names"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def _labels(file: Any, group: int, label: str | None) -> Iterator[Any]:
    """The labels of a row group."""
    names = file.schema_arrow.names
    if (label or LABEL) not in names:
        if label is not None:
            raise ValueError(f"it has no column {label!r} but {names}")
        yield from itertools.repeat(None, file.metadata.row_group(group).num_rows)
        return
    column = label or LABEL
    # Numbers take little memory, however many they are. Other values are read alone.
    are_numbers = pa.types.is_integer(file.schema_arrow.field(column).type)
    for labels in members.rows(file, group, column, NUMBERS_AT_ONCE if are_numbers else 1):
        yield from labels.to_pylist()


@contextlib.contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """A file, and whatever its reader says of it as one sentence."""
    try:
        with pq.ParquetFile(shard) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{shard} is not a Parquet file of images as datasets writes them "
            f"({first_line(error)}); get or write it anew."
        ) from None
