"""A person's answers in one JSON file, which the page exports and the server saves.

The file names the plan that its images were drawn by. It is replaced as a whole, and only by a
process that has read its latest revision.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import write_json
from latteclip.core.terminal import one_line

CLASS, NONE, UNSURE = "class", "none", "unsure"
KINDS = (CLASS, NONE, UNSURE)
VERSION = 2  # of the format
MAX_BYTES = 100_000_000  # of a file of answers
LOCK_SECONDS = 30  # that a write waits for another one


class StaleRevisionError(Exception):
    """The file of answers has changed since it was read."""


@dataclass(frozen=True)
class Answer:
    """A person's answer about an image."""

    image_id: str
    kind: str  # one of KINDS
    classname: str | None = None  # where the kind is CLASS

    def as_json(self) -> dict[str, Any]:
        """Return the answer as an entry of the file."""
        entry = {"image": self.image_id, "answer": self.kind}
        return entry if self.classname is None else {**entry, "class": self.classname}


@dataclass(frozen=True)
class AnswerSchema:
    """The images and classes that answers may name."""

    plan: str  # digest
    dataset: str
    image_ids: frozenset[str]
    classnames: tuple[str, ...]

    def document(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """Return the content of a file of answers."""
        entries = [answer.as_json() for answer in answers.values()]
        return {**self.header(), "answers": entries}

    def header(self) -> dict[str, Any]:
        """Return what identifies the plan in a file of answers."""
        return {"plan": self.plan, "dataset": self.dataset, "version": VERSION}

    def parse(self, document: Any, where: str) -> dict[str, Answer]:
        """Return the answers of a document, by image and in their order.

        Raises:
            UserError: the document is not valid, or belongs to another plan.
        """
        if not isinstance(document, dict) or not isinstance(document.get("answers"), list):
            raise UserError(f"{where} is not a file of answers of latteclip audit.")
        if document.get("plan") != self.plan:
            plan, dataset = (one_line(document.get(key), 80) for key in ("plan", "dataset"))
            raise UserError(
                f"{where} answers another audit (of {dataset}, plan {plan}) than that of "
                f"{self.dataset}, plan {self.plan}; nothing was taken from it."
            )
        answers: dict[str, Answer] = {}
        for number, entry in enumerate(document["answers"], start=1):
            answer = self._parse_entry(entry, f"{where}, answer {number},")
            if answer.image_id in answers:
                image = one_line(answer.image_id, 120)
                raise UserError(f"{where} answers {image!r} more than once.")
            answers[answer.image_id] = answer
        return answers

    def _parse_entry(self, entry: Any, where: str) -> Answer:
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise UserError(f"{where} names no image.")
        image, kind, name = entry["image"], entry.get("answer"), entry.get("class")
        if image not in self.image_ids:
            raise UserError(f"{where} is about {one_line(image, 120)!r}, which was not drawn.")
        if kind not in KINDS:
            raise UserError(f"{where} is {one_line(kind, 40)!r}, not one of {', '.join(KINDS)}.")
        if kind != CLASS:
            return Answer(image, kind)
        if name not in self.classnames:
            likely = suggestion(str(name), self.classnames)
            raise UserError(
                f"{where} names the unknown class {one_line(name, 80)!r}; {one_line(likely)}"
            )
        return Answer(image, kind, name)


def read_answers(path: Path, schema: AnswerSchema) -> tuple[dict[str, Answer], str]:
    """Return the answers of a file and its revision; none and "" where there is no file.

    Raises:
        UserError: the file is not valid, or belongs to another plan.
    """
    if not path.exists():
        return {}, ""
    content = _read(path)
    return schema.parse(_parse_json(content, path), str(path)), _revision(content)


def read_exported(path: str, schema: AnswerSchema) -> dict[str, Answer]:
    """Return the answers of a file that the page exported.

    Raises:
        UserError: the file is missing, is not valid, or belongs to another plan.
    """
    return schema.parse(_parse_json(_read(Path(path)), path), path)


def write_answers(
    path: Path, schema: AnswerSchema, answers: Mapping[str, Answer], revision: str
) -> str:
    """Replace a file of answers and return its new revision.

    Args:
        path: of the file.
        schema: of the answers.
        answers: by image.
        revision: of the file that these answers go on from.

    Raises:
        StaleRevisionError: another process has written the file since.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(".lock"), timeout=LOCK_SECONDS):
        if revision != (_revision(_read(path)) if path.exists() else ""):
            raise StaleRevisionError
        write_json(path, schema.document(answers))
        return _revision(_read(path))


def _revision(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(path: Path) -> bytes:
    """Return the bytes of a file or a pipe, unless there are too many."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is too large to be a file of answers.")
    return content


def _parse_json(content: bytes, path: str | Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({one_line(error, 80)}); export the answers once more."
        ) from None
