"""A person's answers in one JSON file, which the page exports and the server saves.

The file names the plan that its images were drawn by. Only a process that has read its latest
revision replaces it.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import filelock
import pyarrow as pa
import torch
from pydantic import Field, TypeAdapter, ValidationError

from latteclip.core import tables
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import write_json
from latteclip.core.terminal import one_line
from latteclip.data.images import read_bytes
from latteclip.labels.label_sources import LabelledRows

log = logging.getLogger(__name__)
CLASS, NONE, UNSURE = "class", "none", "unsure"
TEACH, CHECK = "teach", "check"  # phases of answers that teach: chosen images, and drawn ones
VERSION = 2  # of the format
PLAN_OF_TEACHING = "teach"  # the plan of answers whose images follow from the answers before
LOCK_SECONDS = 30  # that a write waits for another one


class StaleRevisionError(Exception):
    """The file of answers has changed since it was read."""


@dataclass(frozen=True)
class Answer:
    """A person's answer about an image."""

    image_id: Annotated[str, Field(alias="image")]
    kind: Annotated[str, Field(alias="answer", pattern=f"^({CLASS}|{NONE}|{UNSURE})$")]
    classname: Annotated[str | None, Field(alias="class")] = None  # where the kind is CLASS
    phase: Annotated[str | None, Field(pattern=f"^({TEACH}|{CHECK})$")] = None
    content: str | None = None  # digest of the image's bytes
    repeat: bool = False  # whether the image was asked about a second time

    @property
    def key(self) -> str:
        """The name of the answer among all: an image may have a second one."""
        return self.image_id + "\n2" * self.repeat


@dataclass(frozen=True)
class Document:
    """The content of a file of answers."""

    plan: str
    answers: list[Answer]
    dataset: str = ""


Answers = Mapping[str, Answer]  # by their keys
ANSWERS, DOCUMENT = TypeAdapter(list[Answer]), TypeAdapter(Document)


@dataclass(frozen=True)
class AnswerSchema:
    """The images and classes that answers may name."""

    plan: str  # digest, or PLAN_OF_TEACHING
    dataset: str
    image_ids: frozenset[str] | None  # None: any
    classnames: tuple[str, ...]

    def document(self, answers: Answers) -> dict[str, Any]:
        entries = ANSWERS.dump_python([*answers.values()], by_alias=True, exclude_defaults=True)
        return {**self.header(), "answers": entries}

    def header(self) -> dict[str, Any]:
        return {"plan": self.plan, "dataset": self.dataset, "version": VERSION}

    def parse(self, content: bytes, where: str) -> dict[str, Answer]:
        """Return the answers of a document of this plan by their keys, or raise UserError."""
        try:
            document = DOCUMENT.validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{where} is not a file of answers of latteclip audit ({place}: {first['msg']})."
            ) from None
        if document.plan != self.plan:
            other = one_line(f"{document.dataset}, plan {document.plan}", 160)
            raise UserError(
                f"{where} answers another audit ({other}) than that of {self.dataset}, plan "
                f"{self.plan}; nothing was taken from it."
            )
        for number, answer in enumerate(document.answers, start=1):
            self._check(answer, f"{where}, answer {number},")
        return by_key(document.answers, where)

    def _check(self, answer: Answer, where: str) -> None:
        image, name = answer.image_id, answer.classname
        if self.image_ids is not None and image not in self.image_ids:
            raise UserError(f"{where} is about {one_line(image, 120)!r}, which was not drawn.")
        if name not in (self.classnames if answer.kind == CLASS else (None,)):
            likely = one_line(suggestion(str(name), self.classnames))
            raise UserError(f"{where} names the unknown class {one_line(name, 80)!r}; {likely}")

    def read(self, path: Path) -> tuple[dict[str, Answer], str]:
        """Return the answers of a file and its revision; none and "" where there is no file."""
        if not path.exists():
            return {}, ""
        content = _read(path)
        return self.parse(content, str(path)), _revision(content)

    def read_exported(self, path: str | Path) -> dict[str, Answer]:
        """Return the answers of a file that the page exported, or raise UserError."""
        return self.parse(_read(path), str(path))

    def write(self, path: Path, answers: Answers, revision: str) -> str:
        """Replace the given revision of a file of answers, and return the new one.

        StaleRevisionError: another process has written the file since.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(".lock"), timeout=LOCK_SECONDS):
            if revision != (_revision(_read(path)) if path.exists() else ""):
                raise StaleRevisionError
            write_json(path, self.document(answers))
            return _revision(_read(path))


def by_key(answers: Sequence[Answer], where: str) -> dict[str, Answer]:
    """Return answers by their keys, or raise UserError for two about the same image."""
    found: dict[str, Answer] = {}
    for answer in answers:
        other = found.setdefault(answer.key, answer)
        if other is not answer:
            names = " and ".join(repr(one.classname or one.kind) for one in (other, answer))
            image = one_line(answer.image_id, 120)
            raise UserError(f"{where} answers {image!r} more than once: {names}.")
    return found


def _revision(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def teaching_schema(dataset: str, classnames: Sequence[str]) -> AnswerSchema:
    """Return the schema of the answers that teach."""
    return AnswerSchema(PLAN_OF_TEACHING, dataset, None, tuple(classnames))


def content_digest(path: str) -> str | None:
    """Return the digest of an image's bytes, or None where it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()[:32]
    except (OSError, ValueError):
        return None


def labelled_rows(
    answers: Answers, images: pa.Table, classnames: Sequence[str]
) -> tuple[LabelledRows, list[str]]:
    """Find the answered images among the training images, by name or else by content.

    Answers "cannot tell" are left out. Names of images that are gone are returned as well.
    """
    number = {name: label for label, name in enumerate(classnames)}
    known = [answer for answer in answers.values() if answer.kind != UNSURE]
    row_of = _rows_by_image(known, images)
    gone = sorted({one.image_id for one in known} - row_of.keys())
    known = [one for one in known if one.image_id in row_of]
    each = [row_of[one.image_id] for one in known]
    rows, places = torch.tensor(each, dtype=torch.long).unique(return_inverse=True)
    shares = torch.zeros(len(rows), len(classnames), dtype=torch.float64)
    drawn = torch.zeros(len(rows), dtype=torch.bool)
    for answer, place in zip(known, places, strict=True):
        drawn[place] |= answer.phase == CHECK
        if answer.kind == CLASS:
            shares[place, number[str(answer.classname)]] += 1
    shares /= shares.sum(dim=1, keepdim=True).clamp(min=1)
    return LabelledRows(len(images), rows, shares, drawn), gone


def read_labelled(path: str, images: pa.Table, classnames: Sequence[str]) -> LabelledRows | None:
    """Return the answered images of a table IMAGES, if there are any; missing images are named."""
    answers, _ = teaching_schema("the dataset", classnames).read(Path(path))
    labelled, gone = labelled_rows(answers, images, classnames)
    if gone:
        names = ", ".join(one_line(name, 60) for name in gone[:3])
        log.warning("%s: %d answered images are gone, such as %s.", path, len(gone), names)
    return labelled if len(labelled.rows) else None


def _rows_by_image(answers: Sequence[Answer], images: pa.Table) -> dict[str, int]:
    paths = tables.Strings(images["path"])
    wanted = {answer.image_id: answer.content for answer in answers}
    places = pa.compute.index_in(pa.array(list(wanted), pa.string()), images["image_id"])
    found, lost = {}, {}
    for (name, content), row in zip(wanted.items(), places.to_pylist(), strict=True):
        if row is not None and content in (None, content_digest(paths[row])):
            found[name] = row
        elif content is not None:
            lost[content] = name
    # Renamed files: the only way to find them is to read all others.
    others = iter(sorted({*range(len(paths))} - {*found.values()}) if lost else [])
    while lost and (row := next(others, None)) is not None:
        if (digest := content_digest(paths[row])) in lost:
            found[lost.pop(str(digest))] = row
    return found
