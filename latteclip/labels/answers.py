"""A person's answers in one JSON file, which the page exports and the server saves.

The file names the plan that its images were drawn by. It is replaced as a whole, and only by a
process that has read its latest revision. Answers that teach name the content of their image, by
which they are found again when files are renamed.

Letters: N training images, A answered ones, C classes.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import filelock
import pyarrow as pa
import torch

from latteclip.core import tables
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import write_json
from latteclip.core.terminal import one_line
from latteclip.data.images import read_bytes

log = logging.getLogger(__name__)
CLASS, NONE, UNSURE = "class", "none", "unsure"
KINDS = (CLASS, NONE, UNSURE)
TEACH, CHECK = "teach", "check"  # phases of answers that teach: chosen images, and drawn ones
VERSION = 2  # of the format
PLAN_OF_TEACHING = "teach"  # the plan of answers whose images follow from the answers before
LOCK_SECONDS = 30  # that a write waits for another one


class StaleRevisionError(Exception):
    """The file of answers has changed since it was read."""


@dataclass(frozen=True)
class Answer:
    """A person's answer about an image."""

    image_id: str
    kind: str  # one of KINDS
    classname: str | None = None  # where the kind is CLASS
    phase: str | None = None  # TEACH or CHECK, of answers that teach
    content: str | None = None  # digest of the image's bytes
    repeat: bool = False  # whether the image was asked about a second time

    @property
    def key(self) -> str:
        """The name of the answer among all: an image may have a second one."""
        return self.image_id + "\n2" * self.repeat

    def as_json(self) -> dict[str, Any]:
        """Return the answer as an entry of the file."""
        optional: dict[str, Any] = {"class": self.classname, "phase": self.phase}
        optional |= {"content": self.content, "repeat": self.repeat or None}
        given = {key: value for key, value in optional.items() if value is not None}
        return {"image": self.image_id, "answer": self.kind, **given}


@dataclass(frozen=True)
class AnswerSchema:
    """The images and classes that answers may name."""

    plan: str  # digest, or PLAN_OF_TEACHING
    dataset: str
    image_ids: frozenset[str] | None  # None: any
    classnames: tuple[str, ...]

    def document(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """Return the content of a file of answers."""
        return {**self.header(), "answers": [answer.as_json() for answer in answers.values()]}

    def header(self) -> dict[str, Any]:
        """Return what identifies the plan in a file of answers."""
        return {"plan": self.plan, "dataset": self.dataset, "version": VERSION}

    def parse(self, document: Any, where: str) -> dict[str, Answer]:
        """Return the answers of a document, by their keys and in their order.

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
        parsed = [
            self._parse_entry(entry, f"{where}, answer {number},")
            for number, entry in enumerate(document["answers"], start=1)
        ]
        return by_key(parsed, where)

    def _parse_entry(self, entry: Any, where: str) -> Answer:
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise UserError(f"{where} names no image.")
        image, kind, name = entry["image"], entry.get("answer", ""), entry.get("class")
        phase, content, repeat = (entry.get(key) for key in ("phase", "content", "repeat"))
        if self.image_ids is not None and image not in self.image_ids:
            raise UserError(f"{where} is about {one_line(image, 120)!r}, which was not drawn.")
        is_known = kind in KINDS and phase in (None, TEACH, CHECK)
        if not is_known or not isinstance(content, str | None):
            raise UserError(f"{where} has an unknown kind, phase or content.")
        if kind == CLASS and name not in self.classnames:
            likely = one_line(suggestion(str(name), self.classnames))
            raise UserError(f"{where} names the unknown class {one_line(name, 80)!r}; {likely}")
        return Answer(image, kind, name if kind == CLASS else None, phase, content, repeat is True)


def by_key(answers: Sequence[Answer], where: str) -> dict[str, Answer]:
    """Return answers by their keys.

    Raises:
        UserError: two answers are about the same image.
    """
    found: dict[str, Answer] = {}
    for answer in answers:
        other = found.setdefault(answer.key, answer)
        if other is not answer:
            names = " and ".join(repr(one.classname or one.kind) for one in (other, answer))
            image = one_line(answer.image_id, 120)
            raise UserError(f"{where} answers {image!r} more than once: {names}.")
    return found


def read_answers(path: Path, schema: AnswerSchema) -> tuple[dict[str, Answer], str]:
    """Return the answers of a file and its revision; none and "" where there is no file.

    Raises:
        UserError: the file is not valid, or belongs to another plan.
    """
    if not path.exists():
        return {}, ""
    content = _read(path)
    return _parse(content, path, schema), _revision(content)


def read_exported(path: str, schema: AnswerSchema) -> dict[str, Answer]:
    """Return the answers of a file that the page exported.

    Raises:
        UserError: the file is missing, is not valid, or belongs to another plan.
    """
    return _parse(_read(Path(path)), path, schema)


def write_answers(
    path: Path, schema: AnswerSchema, answers: Mapping[str, Answer], revision: str
) -> str:
    """Replace a file of answers and return its new revision.

    Args:
        path: of the file.
        schema: of the answers.
        answers: by their keys.
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
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _parse(content: bytes, path: str | Path, schema: AnswerSchema) -> dict[str, Answer]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({one_line(error, 80)}); export the answers once more."
        ) from None
    return schema.parse(document, str(path))


# --- answers that teach --------------------------------------------------------------------------


def teaching_schema(dataset: str, classnames: Sequence[str]) -> AnswerSchema:
    """Return the schema of the answers that teach."""
    return AnswerSchema(PLAN_OF_TEACHING, dataset, None, tuple(classnames))


def content_digest(path: str) -> str | None:
    """Return the digest of an image's bytes; None where it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()[:32]
    except (OSError, UserError):
        return None


@dataclass(frozen=True)
class LabelledRows:
    """The answered training images, and the classes that were named."""

    rows: torch.Tensor  # [A] rows of the N training images
    shares: torch.Tensor  # [A, C] float64 share of each class; 0 for an image of none of them
    drawn: torch.Tensor  # [A] bool: whether the image was drawn at random, to check labels

    @classmethod
    def none(cls, n_classes: int) -> Self:
        """Return no answers."""
        shares = torch.empty(0, n_classes, dtype=torch.float64)
        return cls(torch.empty(0, dtype=torch.long), shares, torch.empty(0, dtype=torch.bool))

    def select(self, mask: torch.Tensor) -> "LabelledRows":
        """Return some of the answered images."""
        return LabelledRows(self.rows[mask], self.shares[mask], self.drawn[mask])


def labelled_rows(
    answers: Mapping[str, Answer], images: pa.Table, classnames: Sequence[str]
) -> tuple[LabelledRows, list[str]]:
    """Find the answered images among the training images, by name or else by content.

    Answers "cannot tell" are left out.

    Args:
        answers: by their keys.
        images: the rows of the training images in an IMAGES table.
        classnames: C.

    Returns:
        The answered images, and the names of those that are gone.
    """
    number = {name: label for label, name in enumerate(classnames)}
    known = [answer for answer in answers.values() if answer.kind != UNSURE]
    row_of = _rows_by_image(known, images)
    gone = sorted({one.image_id for one in known} - row_of.keys())
    rows = sorted(set(row_of.values()))
    shares = torch.zeros(len(rows), len(classnames), dtype=torch.float64)
    drawn = torch.zeros(len(rows), dtype=torch.bool)
    place_of = {row: place for place, row in enumerate(rows)}
    for answer in known:
        if answer.image_id in row_of:
            place = place_of[row_of[answer.image_id]]
            drawn[place] |= answer.phase == CHECK
            if answer.kind == CLASS:
                shares[place, number[str(answer.classname)]] += 1
    shares /= shares.sum(dim=1, keepdim=True).clamp(min=1)
    return LabelledRows(torch.tensor(rows, dtype=torch.long), shares, drawn), gone


def read_labelled(path: str, images: pa.Table, classnames: Sequence[str]) -> LabelledRows | None:
    """Return the answered images of a table IMAGES, if there are any; missing images are named."""
    answers, _ = read_answers(Path(path), teaching_schema("the dataset", classnames))
    labelled, gone = labelled_rows(answers, images, classnames)
    if gone:
        names = ", ".join(one_line(name, 60) for name in gone[:3])
        log.warning("%s: %d answered images are gone, such as %s.", path, len(gone), names)
    return labelled if len(labelled.rows) else None


def _rows_by_image(answers: Sequence[Answer], images: pa.Table) -> dict[str, int]:
    """Return the row of each answered image that is there."""
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
