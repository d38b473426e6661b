"""A person's answers in one JSON file, which the page exports and the server saves.

The file names the plan that its images were drawn by. Processes change it one after another.

Images are known by their content, and classes by their names. An answer that says nothing about the
images and classes of now stays in the file, and counts again when they are back.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    # Where the kind is NONE: classes that the person could not choose, of all that the file knows.
    not_offered: tuple[str, ...] = ()

    @property
    def image(self) -> tuple[str, str | None]:
        """The image's name and content when the answer was saved."""
        return self.image_id, self.content


@dataclass(frozen=True)
class Document:
    """The content of a file of answers."""

    plan: str
    answers: list[Answer]
    dataset: str = ""
    # All that the dataset had since the first.
    classes: list[str] = field(default_factory=list)


Answers = Mapping[str, Answer]  # the keys are image ids
ANSWERS = TypeAdapter(list[Answer])
DOCUMENT = TypeAdapter(Document)


@dataclass(frozen=True)
class Saved:
    """The answers of a file, about the images of now under their names of now."""

    answers: dict[str, Answer] = field(default_factory=dict)
    # Answers that say nothing about these classes.
    lapsed: dict[str, Answer] = field(default_factory=dict)
    gone: list[Answer] = field(default_factory=list)  # about images that are not there
    classes: list[str] = field(default_factory=list)  # names of the classes in the document

    @property
    def asked(self) -> dict[str, Answer]:
        """Return all answers about images that are there. Those without a meaning are UNSURE."""
        unsure = {
            key: Answer(answer.image_id, UNSURE) for key, answer in self.lapsed.items()
        }
        return unsure | self.answers

    def warn(self, path: str | Path, folder: str | Path) -> None:
        """Log which answers of a file do not count, and why; `folder` is results/<dataset>."""
        n = len(self.answers) + len(self.lapsed) + len(self.gone)
        lapsed = self.lapsed.values()
        named = [answer.classname for answer in lapsed if answer.classname is not None]
        classes = one_line(", ".join(sorted({*named})), 120)
        images = ", ".join([one_line(answer.image_id, 60) for answer in self.gone][:3])
        for count, reason in (
            (
                len(named),
                f"their classes are gone: {classes}. After renaming a class, run latteclip "
                f"rename-class {folder} OLD NEW",
            ),
            (
                len(lapsed) - len(named),
                'they are "none of these", and a class was added later',
            ),
            (len(self.gone), f"their images are gone or changed, such as {images}"),
        ):
            if count:
                log.warning(
                    "%s: %d of %d answers do not count: %s.", path, count, n, reason
                )


@dataclass(frozen=True)
class AnswerSchema:
    """The images and classes that answers may name."""

    plan: str  # digest, or PLAN_OF_TEACHING
    dataset: str
    images: pa.Table  # columns image_id and checksum of IMAGES
    classnames: tuple[str, ...]

    def header(self) -> dict[str, Any]:
        classes = list(self.classnames)
        return {"plan": self.plan, "dataset": self.dataset, "classes": classes}

    def document(self, answers: Answers) -> dict[str, Any]:
        return {**self.header(), "answers": entries(answers.values())}

    def parse(self, content: bytes, where: str) -> Saved:
        """Return the answers of a document of this plan, or raise UserError."""
        document = _document(content, where)
        if document.plan != self.plan:
            other = one_line(f"{document.dataset}, plan {document.plan}", 160)
            raise UserError(
                f"{where} answers another audit ({other}) than that of {self.dataset}, plan "
                f"{self.plan}; nothing was taken from it."
            )
        return self.resolve(document, where)

    def resolve(self, document: Document, where: str) -> Saved:
        """Return the answers of a document by what they say now, or raise UserError."""
        images = list(dict.fromkeys(answer.image for answer in document.answers))
        rows = dict(zip(images, locate(images, self.images), strict=True))
        ids = self.images["image_id"]
        checksums = self.images["checksum"]
        now = set(self.classnames)
        then = set(document.classes or self.classnames)
        added = now - then
        known = now | then
        resolved = []
        gone = []
        for number, answer in enumerate(document.answers, start=1):
            self._check(answer, known, f"{where}, answer {number},")
            completed = _not_offered(answer, added)
            if (row := rows[answer.image]) is not None:
                content = checksums[row].as_py()
                content = None if content is None else content.hex()
                resolved.append(
                    replace(completed, image_id=ids[row].as_py(), content=content)
                )
            elif answer.content is not None:
                gone.append(completed)
            else:
                name = one_line(answer.image_id, 120)
                raise UserError(
                    f"{where} is about {name!r}, which is not among the images of its questions."
                )
        answers = by_image(resolved, where)
        lapsed = {key: answer for key, answer in answers.items() if self._is_lapsed(answer)}
        answers = {key: answer for key, answer in answers.items() if key not in lapsed}
        return Saved(answers, lapsed, gone, document.classes)

    def _check(self, answer: Answer, classes: set[str], where: str) -> None:
        name = answer.classname
        if name not in (classes if answer.kind == CLASS else (None,)):
            likely = one_line(suggestion(str(name), self.classnames))
            raise UserError(
                f"{where} names the unknown class {one_line(name, 80)!r}; {likely}"
            )

    def _is_lapsed(self, answer: Answer) -> bool:
        if answer.kind == CLASS:
            return answer.classname not in self.classnames
        return not set(self.classnames).isdisjoint(answer.not_offered)

    def read(self, path: Path) -> Saved:
        """Return the answers of a file; none where there is no file."""
        return self.read_exported(path) if path.exists() else Saved()

    def read_exported(self, path: str | Path) -> Saved:
        """Return the answers of a file that the page exported, or raise UserError."""
        return self.parse(_read(path), str(path))

    def update(
        self, path: Path, changed: Answers, removed: Collection[str] = ()
    ) -> dict[str, Answer]:
        """Change and remove some answers of a file by their images, and return all about now.

        The file keeps what other processes have saved, and answers about other images and classes.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            before = self.read(path)
            answers = {**before.answers, **changed}
            for key in removed:
                answers.pop(key, None)
            lapsed = [
                answer
                for key, answer in before.lapsed.items()
                if key not in answers and key not in removed
            ]
            every = entries([*before.gone, *lapsed, *self._described(answers, before)])
            classes = list(dict.fromkeys([*before.classes, *self.classnames]))
            write_json(path, {**self.header(), "classes": classes, "answers": every})
        return answers

    def _described(self, answers: Answers, before: Saved) -> Iterator[Answer]:
        """Yield answers with their images' content, new ones with the classes not offered."""
        names = [answer.image_id for answer in answers.values()]
        rows = pc.index_in(pa.array(names, pa.string()), self.images["image_id"])
        checksums = self.images["checksum"].take(rows).to_pylist()
        missing = set(before.classes) - set(self.classnames)
        for (key, answer), checksum in zip(answers.items(), checksums, strict=True):
            known = before.answers.get(key)
            is_new = known is None or known.kind != answer.kind
            described = _not_offered(answer, missing if is_new else ())
            content = answer.content if checksum is None else checksum.hex()
            yield replace(described, content=content)


def entries(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Return answers as JSON has them."""
    values = ANSWERS.dump_python(
        [*answers], mode="json", by_alias=True, exclude_defaults=True
    )
    return list(values)


def _not_offered(answer: Answer, classes: Iterable[str]) -> Answer:
    """Return an answer to which more classes were not offered."""
    if answer.kind != NONE:
        return answer
    return replace(answer, not_offered=tuple(sorted({*answer.not_offered, *classes})))


def rename_class(path: Path, old: str, new: str) -> int:
    """Give a class another name in a file of answers, and return how many answers name it."""

    def names(classes: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(new if name == old else name for name in classes))

    with locked(path):
        document = _document(_read(path), str(path))
        answers = [
            replace(
                answer,
                classname=new if answer.classname == old else answer.classname,
                not_offered=tuple(names(answer.not_offered)),
            )
            for answer in document.answers
        ]
        values = {**vars(document), "classes": names(document.classes)}
        write_json(path, {**values, "answers": entries(answers)})
    return sum(answer.classname == old for answer in document.answers)


def read_classes(path: Path) -> list[str]:
    """Return all classes that a file of answers knows, or raise UserError."""
    return _document(_read(path), str(path)).classes


def _document(content: bytes, where: str) -> Document:
    try:
        return DOCUMENT.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{where} is not a file of answers of latteclip audit ({place}: {first['msg']})."
        ) from None


def locate(images: Sequence[tuple[str, str | None]], index: pa.Table) -> list[int | None]:
    """Return the rows of images in an index, given names and contents.

    A row has the name and the content, or else the content alone; None: it is not there. A content
    of None is any. Images of different rows stay different.
    """
    names = index["image_id"]
    checksums = index["checksum"]
    wanted = [None if content is None else bytes.fromhex(content) for _, content in images]
    rows = pc.index_in(pa.array([name for name, _ in images], pa.string()), names)
    there = checksums.take(rows).to_pylist()
    located = [
        row if content in (None, checksum) else None
        for row, content, checksum in zip(rows.to_pylist(), wanted, there, strict=True)
    ]
    moved = {content for row, content in zip(located, wanted, strict=True) if row is None}
    moved.discard(None)
    if moved:
        taken = set(located)
        free = defaultdict[bytes, list[int]](list)
        of_moved = pc.is_in(checksums, pa.array(list(moved), checksums.type))
        for row in reversed(np.flatnonzero(of_moved.to_numpy()).tolist()):
            if row not in taken:
                free[checksums[row].as_py()].append(row)
        for number, content in enumerate(wanted):
            if located[number] is None and content is not None and free[content]:
                located[number] = free[content].pop()
    return located


def by_image(answers: Iterable[Answer], where: str) -> dict[str, Answer]:
    """Return answers by their images, or raise UserError for two about the same one."""
    answer_of_image: dict[str, Answer] = {}
    for answer in answers:
        other = answer_of_image.setdefault(answer.image_id, answer)
        if other is not answer:
            pair = (other, answer)
            names = " and ".join(repr(each.classname or each.kind) for each in pair)
            image = one_line(answer.image_id, 120)
            raise UserError(f"{where} answers {image!r} more than once: {names}.")
    return answer_of_image


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def teaching_schema(
    dataset: str, classnames: Sequence[str], images: pa.Table
) -> AnswerSchema:
    """Return the schema of the answers that teach, about the images of a table IMAGES."""
    return AnswerSchema(PLAN_OF_TEACHING, dataset, images, tuple(classnames))
