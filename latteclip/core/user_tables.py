"""Read tables that the user brings along: Parquet, CSV, TSV or JSON Lines."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False}
READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, **TEXT),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", **TEXT),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
}


def read_table(path: str | None, key: str) -> pd.DataFrame:
    """Read the file that a key names, or raise UserError."""
    reader = READERS.get(Path(path or "").suffix.lower())
    if path is None or reader is None:
        raise UserError(f"{key} {path} does not end in any of {', '.join(READERS)}.")
    try:
        return reader(path)
    except Exception as error:  # readers fail in many ways on broken files
        raise UserError(
            f"{key} {path} cannot be read: {one_line(error).rstrip('.')}."
        ) from None


def rows_of(
    table: pd.DataFrame, path: str | None, key: str, columns: Sequence[str]
) -> list[tuple[Any, ...]]:
    """Return columns by rows. The first is an image_id, of which each has one row."""
    if missing := set(columns) - set(table.columns):
        raise UserError(f"{key} {path} lacks the columns {sorted(missing)}.")
    image_ids = table[columns[0]].astype(str)
    repeated = image_ids[image_ids.duplicated()]
    if len(repeated):
        raise UserError(f"{key} {path} has two rows for {repeated.iloc[0]!r}; remove one.")
    return list(zip(image_ids, *(table[name] for name in columns[1:]), strict=True))


def list_of(cell: Any) -> list[Any]:
    """Return the list of a cell, which CSV and TSV write as JSON."""
    return list(
        json.loads(cell.replace("-inf", "-Infinity")) if isinstance(cell, str) else cell
    )
