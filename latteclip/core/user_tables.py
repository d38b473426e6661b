"""Read tables that the user brings along: Parquet, CSV, TSV or JSON Lines."""

import codecs
import json
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.tables import from_csv_cell
from latteclip.core.terminal import one_line

log = logging.getLogger(__name__)


# Names of the columns of images and of classes. Of exported labels, answers alone count.
IMAGE = ("image_id", "image", "path", "file", "filename")
CLASS = ("answered", "class", "label", "classname")
SEPARATORS = ",;\t"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _read_csv(path: str) -> pd.DataFrame:
    """Read a table of texts, as spreadsheets write it. A line longer than the first is an error."""
    with Path(path).open("rb") as file:
        encoding = "utf-16" if file.read(2) in UTF_16 else "utf-8-sig"
    with Path(path).open(encoding=encoding) as text:
        head = text.readline()
    lines = pd.read_csv(
        path,
        sep=max(SEPARATORS, key=head.count),
        header=None,  # pandas would rename the second of two equal columns
        dtype=str,
        keep_default_na=False,
        skipinitialspace=True,
        encoding=encoding,
    ).fillna("")  # a line may be shorter
    cells = lines[1:].map(from_csv_cell)
    return cells.set_axis(lines.iloc[0], axis=1).reset_index(drop=True)


def _read_json_lines(path: str) -> pd.DataFrame:
    return pd.read_json(path, lines=True, dtype=False)


READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
}


def read_table(path: str | None, key: str, suffix: str = "") -> pd.DataFrame:
    """Read the file that a key names, by its suffix or the given one, or raise UserError.

    Capitals and spaces around the names of columns do not count.
    """
    reader = READERS.get(suffix or Path(str(path)).suffix.lower())
    if reader is None:
        raise UserError(
            f"{key} {path} does not end in any of {', '.join(READERS)}; a spreadsheet saves its "
            "table as CSV."
        )
    try:
        table = reader(str(path))
    except FileNotFoundError:
        raise UserError(f"{key} {path} is not there; correct its name.") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{key} {path} is not valid UTF-8 text; save it as CSV UTF-8."
        ) from None
    except Exception as error:  # readers fail in many ways on broken files
        raise UserError(
            f"{key} {path} cannot be read: {one_line(error).rstrip('.')}."
        ) from None
    table.columns = table.columns.astype(str).str.strip().str.lower()
    if not table.columns.is_unique:
        raise UserError(f"{key} {path} has two columns of one name; remove one.")
    return table


def read_image_table(path: str | None, key: str) -> pd.DataFrame:
    """Read a table of images, whose columns of IMAGE and CLASS become image_id and class.

    UserError: it has no column of images.
    """
    table = read_table(path, key)
    for name, others in (("image_id", IMAGE), ("class", CLASS)):
        found = [other for other in others if other in table.columns]
        new = dict.fromkeys(found[:1], name)
        table = table.drop(columns=found[1:]).rename(columns=new)
    if "image_id" not in table.columns:
        raise UserError(
            f"{key} {path} has the columns {', '.join(table.columns)}; it needs one of images, "
            f"called {' or '.join(IMAGE)}."
        )
    return table


def numbers_of_classes(
    classnames: Sequence[str], written_names: Mapping[str, str]
) -> dict[Any, int]:
    """Return the number of each class by all that a user's file may call it.

    That is its name, as the dataset or CLIP writes it, or its number from 0. Where a class is
    called by a number, names alone count.
    """
    number_of: dict[Any, int] = {}
    for number, name in enumerate(classnames):
        number_of |= {written_names.get(name, name): number, name: number}
    if not any(name.strip().isdecimal() for name in number_of):
        for number in range(len(classnames)):
            number_of |= {number: number, str(number): number}
    return number_of


def class_of(cell: Any, numbers: Mapping[Any, int]) -> int | None:
    """Return the number of the class that a cell names, None where it names none.

    Capitals and spaces around a name do not count, unless the name is a class as it is.
    """
    if isinstance(cell, str) and cell not in numbers:
        cell = clean_classname(cell)
    # A Parquet file has NumPy's numbers.
    is_name = isinstance(cell, str | Real) and not isinstance(cell, bool)
    return numbers.get(cell) if is_name else None


def unknown_class(cell: Any, numbers: Mapping[Any, int]) -> str:
    """Return the end of a sentence on a cell that names no class: what to do."""
    if isinstance(cell, Real) and not isinstance(cell, bool):
        return (
            "write names of classes as text, or numbers below that of the classes."
        )
    return suggestion(
        str(cell), [name for name in numbers if isinstance(name, str)]
    )


def is_empty(cell: Any) -> bool:
    """Return whether a cell has no value."""
    if isinstance(cell, str):
        return not cell
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell))


def list_of(cell: Any) -> list[Any]:
    """Return the list of a cell, which CSV and TSV write as JSON."""
    if isinstance(cell, str):
        cell = json.loads(cell.replace("-inf", "-Infinity"))
    return list(cell)


class ImageNames:
    """Names of images in users' files.

    An image is named by its image_id, by a path that ends so, or by the name of its file where no
    other image has that name. Letters with accents may be two characters, as macOS writes them.
    """

    def __init__(self, image_ids: Sequence[str]) -> None:
        self._known = set(image_ids)
        self._of_base: dict[str, list[str]] = defaultdict(list)
        for image_id in image_ids:
            self._of_base[_nfc(PurePosixPath(image_id).name)].append(image_id)

    def find(self, name: str) -> str | None:
        """Return the image_id that a name means, if it means one."""
        if name in self._known:
            return name
        place = _nfc(name.replace("\\", "/"))
        alike = self._of_base.get(PurePosixPath(place).name, ())
        ending = [
            image_id
            for image_id in alike
            if f"/{place}".endswith(f"/{_nfc(image_id)}")
        ]
        if ending:
            return max(ending, key=len)
        return alike[0] if len(alike) == 1 and "/" not in place else None


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def cells_by_image(
    path: str | None,
    key: str,
    table: pd.DataFrame,
    columns: Sequence[str],
    image_ids: Sequence[str],
) -> dict[str, list[Any]]:
    """Return the cells of columns of a file by image_id, in whose column the file has `ImageNames`.

    UserError: a column is missing, two rows name the same image, or no row names any.
    """
    if missing := {*columns} - set(table.columns):
        raise UserError(
            f"{key} {path} lacks the columns {', '.join(sorted(missing))} beside "
            f"{', '.join(table.columns)}."
        )
    names = ImageNames(image_ids)
    rows: dict[str, list[Any]] = {}
    for name, *cells in table[["image_id", *columns]].itertuples(index=False):
        image_id = names.find(str(name))
        if image_id in rows:
            raise UserError(
                f"{key} {path} has two rows for {image_id!r}, one called {name!r}; remove one."
            )
        if image_id is not None:
            rows[image_id] = cells
    if not rows:
        raise UserError(
            f"{key} {path} names none of the {len(image_ids):,} images, which are named like "
            f"{image_ids[0]!r}; use the image_id of images.parquet, or its end."
        )
    if n := len(image_ids) - len(rows):
        log.warning(
            "%s %s has no row for %d of %d images.", key, path, n, len(image_ids)
        )
    return rows
