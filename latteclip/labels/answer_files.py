"""Labels of images by other tools, read as answers: CSV, Parquet, JSON Lines, Label Studio."""

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from latteclip.core.errors import UserError, suggestion
from latteclip.core.tables import from_csv_cell
from latteclip.core.terminal import one_line
from latteclip.core.user_tables import numbers_of_classes
from latteclip.labels.answers import CLASS, WORDS, Answer, by_image

log = logging.getLogger(__name__)
IMAGE = ("image", "image_id", "path", "file", "filename")  # names of the column of images
LABEL = ("class", "label", "classname")
ANSWERED = "answered"  # a column of exported labels, which alone holds answers there
TABLES = (".csv", ".parquet", ".jsonl", ".ndjson")
# What a reader raises for bytes of another form, and for JSON with values of other types.
WRONG = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    csv.Error,
    pa.ArrowException,
)


def is_foreign(path: str) -> bool:
    """Return whether a file is not one that the page exports. UserError: it is neither."""
    suffix = Path(path).suffix.lower()
    if suffix in TABLES:
        return True
    if suffix != ".json":
        raise UserError(
            f"{path} is neither a file of answers of the page (.json), nor an export of Label "
            f"Studio (.json), nor a table ({', '.join(TABLES)})."
        )
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(64).lstrip().startswith("[")
    except (OSError, ValueError):
        return False


def read_foreign(
    path: str,
    image_ids: Sequence[str],
    paths: Sequence[str],
    classnames: Sequence[str],
    written_names: Mapping[str, str],
) -> dict[str, Answer]:
    """Return the answers of a file of another tool; images that are not there are left out.

    An image is named by its image_id, its path, or the name of its file where that is unique.
    Classes are those of `numbers_of_classes`. UserError names unknown classes, and images of two
    classes.
    """
    kinds: dict[Any, Answer] = {word: Answer("", kind) for kind, word in WORDS.items()}
    numbers = numbers_of_classes(classnames, written_names)
    kinds |= {name: Answer("", CLASS, classnames[n]) for name, n in numbers.items()}
    names = [PurePath(place).name for place in paths]
    times = Counter(names)
    known = {name: i for name, i in zip(names, image_ids, strict=True) if times[name] == 1}
    known |= dict(zip(paths, image_ids, strict=True)) | {name: name for name in image_ids}
    answers: dict[tuple[str, str | None], Answer] = {}
    missing = []
    for number, (image, label) in enumerate(_read_rows(path), start=1):
        if label not in kinds:
            likely = one_line(suggestion(str(label), classnames))
            raise UserError(
                f"{path}, entry {number}, names the unknown class {one_line(label, 80)!r}; {likely}"
            )
        image_id = known.get(image) or known.get(PurePath(image).name)
        if image_id is None:
            missing.append(image)
        else:
            answer = replace(kinds[label], image_id=image_id)
            answers[image_id, answer.classname or answer.kind] = answer
    if missing:
        first = one_line(missing[0], 80)
        log.warning(
            "%s: %d images are no training images, such as %s.", path, len(missing), first
        )
    if not answers:
        raise UserError(f"{path} names no training image of this dataset.")
    return by_image(answers.values(), path)


def _read_rows(path: str) -> Iterator[tuple[str, Any]]:
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _columns(pq.read_table(path).to_pylist(), path)
        elif suffix not in TABLES:
            yield from _label_studio(json.loads(Path(path).read_text(encoding="utf-8")))
        else:
            with Path(path).open(encoding="utf-8-sig", newline="") as file:
                lines = (json.loads(line) for line in file if line.strip())
                yield from _columns(_csv_rows(file) if suffix == ".csv" else lines, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except WRONG as error:
        raise UserError(
            f"{path} is not a valid file of labels ({one_line(error, 80)})."
        ) from None


def _csv_rows(file: Iterable[str]) -> Iterator[dict[str, str]]:
    for row in csv.DictReader(file):
        yield {k: from_csv_cell(v) if isinstance(v, str) else v for k, v in row.items()}


def _columns(rows: Any, path: str) -> Iterator[tuple[str, Any]]:
    for row in rows:
        image = next((row[name] for name in IMAGE if row.get(name)), None)
        names = (ANSWERED,) if ANSWERED in row else LABEL
        label = next((row[name] for name in names if row.get(name) not in (None, "")), None)
        if not isinstance(image, str):
            raise UserError(
                f"{path} needs a column of images, called {' or '.join(IMAGE)}."
            )
        if label is not None:  # an image without a class is not labelled yet
            is_number = isinstance(label, int) and not isinstance(label, bool)
            yield image, label if is_number else str(label)


def _label_studio(tasks: Any) -> Iterator[tuple[str, Any]]:
    """Yield the choices of the last annotation of each task."""
    for task in tasks:
        annotations = task.get("annotations") or [{"result": []}]
        for result in annotations[-1]["result"]:
            for choice in result.get("value", {}).get("choices", []):
                image = task["data"].get("image_id")
                if image is None:  # the address of a picture
                    image = unquote(task["data"]["image"].rpartition("?d=")[2])
                yield image, str(choice)
