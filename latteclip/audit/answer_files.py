"""Labels of images by other tools, read as answers: tables of a user, and Label Studio's export."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latteclip.core.answers import CLASS, WORDS, Answer
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line
from latteclip.core.user_tables import CLASS as LABEL
from latteclip.core.user_tables import (
    ImageNames,
    class_of,
    is_empty,
    numbers_of_classes,
    read_image_table,
    unknown_class,
)

log = logging.getLogger(__name__)
# What JSON raises for bytes of another form, and for values of other types.
WRONG = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def is_foreign(path: str) -> bool:
    """Return whether a file is a table or an export of Label Studio. OSError: it is not there."""
    is_json = Path(path).suffix.lower() == ".json"
    return not is_json or Path(path).read_bytes().lstrip().startswith(b"[")


def read_foreign(
    path: str,
    image_ids: Sequence[str],
    classnames: Sequence[str],
    written_names: Mapping[str, str],
) -> dict[str, Answer]:
    """Return the answers of a file of another tool; images that are not there are left out.

    Images are named as `ImageNames` says, and classes as `numbers_of_classes` says. UserError names
    unknown classes, and images of two classes.
    """
    numbers = numbers_of_classes(classnames, written_names)
    kind_of = {word: kind for kind, word in WORDS.items()}
    names = ImageNames(image_ids)
    answers: dict[str, Answer] = {}
    missing = []
    is_json = Path(path).suffix.lower() == ".json"
    rows = _tasks(path) if is_json else _table_rows(path)
    for image, label in rows:
        number = class_of(label, numbers)
        kind = kind_of.get(str(label)) if number is None else CLASS
        if kind is None:
            raise UserError(
                f"{path}, image {one_line(image, 80)!r}, names the unknown class "
                f"{one_line(label, 80)!r}; {one_line(unknown_class(label, numbers))} After the "
                "classes have changed, run the workflow first."
            )
        image_id = names.find(image)
        if image_id is None:
            missing.append(image)
            continue
        answer = Answer(
            image_id, kind, None if number is None else classnames[number]
        )
        if answers.setdefault(image_id, answer) != answer:
            raise UserError(
                f"{path} gives {one_line(image_id, 120)!r} two classes."
            )
    if missing:
        first = one_line(missing[0], 80)
        log.warning(
            "%s: %d of its images are not here, such as %s.",
            path,
            len(missing),
            first,
        )
    if not answers:
        raise UserError(f"{path} names no training image of this dataset.")
    return answers


def _table_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Yield the images of a table that have a class."""
    table = read_image_table(path, "The file")
    if "class" not in table.columns:
        raise UserError(
            f"{path} needs a column of classes, called {' or '.join(LABEL)}."
        )
    for image, label in table[["image_id", "class"]].itertuples(index=False):
        if not is_empty(label):
            yield str(image), label


def _tasks(path: str) -> Iterator[tuple[str, str]]:
    """Yield the images and choices of the last annotation of each task of Label Studio."""
    try:
        for task in json.loads(Path(path).read_bytes()):
            annotations = task.get("annotations") or [{"result": []}]
            for result in annotations[-1]["result"]:
                for choice in result.get("value", {}).get("choices", []):
                    image = task["data"].get("image_id")
                    if image is None:  # the address of a picture
                        image = unquote(task["data"]["image"].rpartition("?d=")[2])
                    yield str(image), str(choice)
    except WRONG as error:
        raise UserError(
            f"{path} is not a valid export of Label Studio ({one_line(error, 80)})."
        ) from None
