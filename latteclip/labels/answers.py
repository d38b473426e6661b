"""A person's answers in one JSON file, which the page exports and the server saves.

The file names the plan that its images were drawn by. Processes change it one after another.

Images are known by their content, and classes by their names. An answer that says nothing about the
images and classes of now stays in the file, and counts again when they are back.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, TypeAdapter, ValidationError

from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import locked, write_json
from latteclip.core.terminal import one_line

log = logging.getLogger(__name__)
CLASS = "class"
NONE = "none"
UNSURE = "unsure"
WORDS = {NONE: "none of these", UNSURE: "cannot tell"}  # words of exported labels
# Phases of answers that teach: chosen images, and drawn ones.
TEACH, CHECK = "teach", "check"
# The plan of answers whose images follow from the answers before.
PLAN_OF_TEACHING = "teach"


@dataclass(frozen=True)
class Answer:
    """A person's answer about an image."""

    image_id: Annotated[str, Field(alias="image")]
    kind: Annotated[str, Field(alias="answer", pattern=f"^({CLASS}|{NONE}|{UNSURE})$")]
    classname: Annotated[str | None, Field(alias="class")] = None  # where the kind is CLASS
    phase: Annotated[str | None, Field(pattern=f"^({TEACH}|{CHECK})$")] = None
    # The image's checksum in hexadecimal digits.
    content: Annotated[str | None, Field(pattern="^[0-9a-f]{32}$")] = None
    # Where the kind is NONE: the classes that the person saw, () for all of the document.
    offered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """The content of a file of answers, or of a request of the page."""

    plan: str
    answers: list[Answer]
    # All that the dataset had since the first answer.
    classes: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)  # images whose answers are taken back


DOCUMENT = TypeAdapter(Document)


@dataclass(frozen=True)
class Saved:
    """The answers of a document, about the images of now under their names of now."""

    answers: dict[str, Answer] = field(default_factory=dict)
    # Answers that say nothing about these classes.
    lapsed: dict[str, Answer] = field(default_factory=dict)
    gone: list[Answer] = field(default_factory=list)  # about images that are not there
    classes: list[str] = field(default_factory=list)  # those of the document
    removed: list[str] = field(default_factory=list)

    @property
    def asked(self) -> dict[str, Answer]:
        """Return all answers about images that are there. Those without a meaning are UNSURE."""
        return {key: Answer(key, UNSURE) for key in self.lapsed} | self.answers

    def warn(self, path: str | Path, folder: str | Path) -> None:
        """Log that answers of a file do not count, and why; `folder` is results/<dataset>."""
        others = [*self.lapsed.values(), *self.gone]
        if others:
            about = others[0].classname or WORDS.get(others[0].kind)
            log.warning(
                "%s: %d of %d answers do not count, such as %s about %s. Their images or classes "
                'are gone, or a class was added after "none of these". After renaming a class, run '
                "latteclip rename-class %s OLD NEW.",
                path,
                len(others),
                len(others) + len(self.answers),
                one_line(about, 80),
                one_line(others[0].image_id, 80),
                folder,
            )


@dataclass(frozen=True)
class AnswerSchema:
    """The images and classes that answers may name."""

    plan: str  # digest, or PLAN_OF_TEACHING
    dataset: str
    images: pa.Table  # columns image_id and checksum of IMAGES
    classnames: tuple[str, ...]

    def document(self, answers: Iterable[Answer] = ()) -> Document:
        """Return a document with answers about these images and classes."""
        return Document(self.plan, [*answers], [*self.classnames])

    def parse(self, content: bytes, where: str) -> Saved:
        """Return what a document of this plan says now, or raise UserError."""
        document = _document(content, where)
        if document.plan != self.plan:
            raise UserError(
                f"{where} answers other questions than those about {self.dataset}; nothing was "
                "taken from it."
            )
        return self.resolve(document, where)

    def resolve(self, document: Document, where: str) -> Saved:
        """Return the answers of a document by what they say now, or raise UserError."""
        images = [(answer.image_id, answer.content) for answer in document.answers]
        known = document.classes or [*self.classnames]
        ids, checksums = self.images["image_id"], self.images["checksum"]
        found = []
        gone = []
        for answer, row in zip(document.answers, locate(images, self.images), strict=True):
            self._check(answer, known, where)
            answer = replace(answer, offered=answer.offered or tuple(known))
            if row is not None:
                content = checksums[row].as_py()
                content = content and content.hex()
                found.append(replace(answer, image_id=ids[row].as_py(), content=content))
            elif answer.content is not None:
                gone.append(answer)
            else:
                name = one_line(answer.image_id, 120)
                raise UserError(
                    f"{where} is about {name!r}, which is not among the images of its questions."
                )
        answers = by_image(found, where)
        lapsed = {key: answer for key, answer in answers.items() if self._is_lapsed(answer)}
        answers = {key: answer for key, answer in answers.items() if key not in lapsed}
        return Saved(answers, lapsed, gone, document.classes, document.removed)

    def _check(self, answer: Answer, known: Collection[str], where: str) -> None:
        name = answer.classname
        names = {*known, *self.classnames} if answer.kind == CLASS else {None}
        if name not in names:
            likely = one_line(suggestion(str(name), self.classnames))
            raise UserError(
                f"{where} names the unknown class {one_line(name, 80)!r}; {likely}"
            )

    def _is_lapsed(self, answer: Answer) -> bool:
        if answer.kind == CLASS:
            return answer.classname not in self.classnames
        return answer.kind == NONE and not set(self.classnames) <= {*answer.offered}

    def read(self, path: Path) -> Saved:
        """Return the answers of a file; none where there is no file."""
        return self.parse(read_whole(path), str(path)) if path.exists() else Saved()

    def update(
        self, path: Path, changed: Mapping[str, Answer], removed: Collection[str] = ()
    ) -> dict[str, Answer]:
        """Change and remove some answers of a file by their images, and return all about now.

        The file keeps what other processes have saved, and answers about other images and classes.
        """
        added = self.resolve(self.document(changed.values()), str(path)).answers
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            before = self.read(path)
            answers = {**before.answers, **added}
            for key in removed:
                answers.pop(key, None)
            replaced = {*answers, *removed}
            lapsed = [one for key, one in before.lapsed.items() if key not in replaced]
            every = [*before.gone, *lapsed, *answers.values()]
            classes = dict.fromkeys([*before.classes, *self.classnames])
            _write(path, replace(self.document(every), classes=[*classes]))
        return answers


def as_json(document: Document) -> dict[str, Any]:
    """Return a document as JSON has it."""
    values = DOCUMENT.dump_python(
        document, mode="json", by_alias=True, exclude_defaults=True
    )
    return dict(values)


def _write(path: Path, document: Document) -> None:
    """Write a document, in which few answers name the classes that were offered."""
    every = set(document.classes)
    answers = [
        replace(answer, offered=())
        if answer.kind != NONE or every <= {*answer.offered}
        else answer
        for answer in document.answers
    ]
    write_json(path, as_json(replace(document, answers=answers)))


def rename_in_answers(path: Path, old: str, new: str) -> int:
    """Give a class another name in a file of answers, and return how many answers name it."""
    with locked(path):
        document = read_document(path)

        def renamed(names: Iterable[str]) -> list[str]:
            return list(dict.fromkeys(new if name == old else name for name in names))

        answers = [
            replace(
                answer,
                classname=new if answer.classname == old else answer.classname,
                offered=tuple(renamed(answer.offered or document.classes)),
            )
            for answer in document.answers
        ]
        _write(path, replace(document, answers=answers, classes=renamed(document.classes)))
    return sum(answer.classname == old for answer in document.answers)


def read_document(path: Path) -> Document:
    """Return the content of a file of answers, or raise UserError."""
    return _document(read_whole(path), str(path))


def _document(content: bytes, where: str) -> Document:
    try:
        return DOCUMENT.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{where} is not a file of answers of latteclip ({place}: {first['msg']})."
        ) from None


def locate(images: Sequence[tuple[str, str | None]], index: pa.Table) -> list[int | None]:
    """Return the rows of images in an index, given names and contents.

    A row has the name and the content, or else the content alone; None: it is not there. A content
    of None is any. Images of different rows stay different.
    """
    checksums = index["checksum"]
    names = pa.array([name for name, _ in images], pa.string())
    wanted = [None if content is None else bytes.fromhex(content) for _, content in images]
    rows = pc.index_in(names, index["image_id"])
    there = checksums.take(rows).to_pylist()
    located = [
        row if content in (None, checksum) else None
        for row, content, checksum in zip(rows.to_pylist(), wanted, there, strict=True)
    ]
    missing = [content for row, content in zip(located, wanted, strict=True) if row is None]
    is_wanted = pc.is_in(checksums, pa.array(missing, checksums.type))
    taken = set(located)
    free = defaultdict[bytes | None, list[int]](list)
    for row in reversed(np.flatnonzero(is_wanted.to_numpy()).tolist()):
        if row not in taken:
            free[checksums[row].as_py()].append(row)
    return [
        free[content].pop() if row is None and content and free[content] else row
        for row, content in zip(located, wanted, strict=True)
    ]


def by_image(answers: Iterable[Answer], where: str) -> dict[str, Answer]:
    """Return answers by their images, or raise UserError for two about the same one."""
    answer_of_image: dict[str, Answer] = {}
    for answer in answers:
        other = answer_of_image.setdefault(answer.image_id, answer)
        if other is not answer:
            image = one_line(answer.image_id, 120)
            raise UserError(f"{where} answers {image!r} more than once.")
    return answer_of_image


def read_whole(path: str | Path) -> bytes:
    """Return the content of a file, or raise UserError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def teaching_schema(
    dataset: str, classnames: Sequence[str], images: pa.Table
) -> AnswerSchema:
    """Return the schema of the answers that teach, about the images of a table IMAGES."""
    return AnswerSchema(PLAN_OF_TEACHING, dataset, images, tuple(classnames))
