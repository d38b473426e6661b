"""Tables that the user brings along, in place of an engine's answers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line


def _parquet(path: str, columns: Sequence[str]) -> pd.DataFrame:
    there = set(pq.read_schema(path).names)
    return pd.read_parquet(path, columns=[name for name in columns if name in there])


Reader = Callable[[str, Sequence[str]], pd.DataFrame]
READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".csv": lambda path, _: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".tsv": lambda path, _: pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False),
    ".jsonl": lambda path, _: pd.read_json(path, lines=True, dtype=False),
}


def read_own(path: str, key: str, columns: Sequence[str]) -> pd.DataFrame:
    """A Parquet, CSV, TSV or JSON Lines file with certain columns; what CSV and TSV hold is text.

    Args:
        path: of the file.
        key: of the configuration that names it.
        columns: that it must have.

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
    missing = set(columns) - set(table.columns)
    if missing:
        raise UserError(f"{key} {path} lacks the columns {sorted(missing)}.")
    return table
