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

from latteclip.core.errors import UserError
from latteclip.core.files import locked, wanted, write_json
from latteclip.core.terminal import one_line

log = logging.getLogger(__name__)
# Below the results of a dataset, and beside the plan of an audit.
ANSWERS = "answers.json"
CLASS = "class"
NONE = "none"
UNSURE = "unsure"
WORDS = {NONE: "none of these", UNSURE: "cannot tell"}  # words of exported labels
# Phases of answers that teach: chosen images, and drawn ones.
TEACH, CHECK = "teach", "check"
# The plan of answers whose images follow from the answers before.
PLAN_OF_TEACHING = "teach"
# States of an answer: its image is gone, or it says nothing about the classes of now.
COUNTS, GONE, LAPSED = "counts", "gone", "lapsed"


@dataclass(frozen=True)
class Answer:
    """A person's answer about an image."""

    image_id: Annotated[str, Field(alias="image")]
    kind: Annotated[
        str, Field(alias="answer", pattern=f"^({CLASS}|{NONE}|{UNSURE})$")
    ]
    # Where the kind is CLASS.
    classname: Annotated[str | None, Field(alias="class")] = None
    phase: Annotated[str | None, Field(pattern=f"^({TEACH}|{CHECK})$")] = None
    # The image's checksum in hexadecimal digits.
    content: Annotated[str | None, Field(pattern="^[0-9a-f]{32}$")] = None
    # Where the kind is NONE: the classes that the person saw, () for all of the file.
    offered: tuple[str, ...] = ()
    # Of an imported check: the training images that there were, of which a person drew it.
    drawn_from: int | None = None
    state: Annotated[str, Field(exclude=True)] = COUNTS

    @property
    def is_imported(self) -> bool:
        """Return whether no page asked."""
        return self.phase is None or self.drawn_from is not None

    @property
    def meaning(self) -> str:
        """Return the class, or the words in its place."""
        return WORDS.get(self.kind) or str(self.classname)


@dataclass(frozen=True)
class SavedAnswers:
    """The content of a file of answers, or of a request of the page."""

    plan: str
    entries: Annotated[list[Answer], Field(alias="answers")]
    classes: list[str] = field(default_factory=list)
    # Images whose answers are taken back.
    removed: list[str] = field(default_factory=list)

    @property
    def answers(self) -> dict[str, Answer]:
        """Return the answers that count, by image."""
        return {one.image_id: one for one in self.entries if one.state == COUNTS}

    @property
    def asked(self) -> dict[str, Answer]:
        """Return all answers about images that are there. Those without a meaning are UNSURE."""
        return {
            one.image_id: one
            if one.state == COUNTS
            else Answer(one.image_id, UNSURE)
            for one in self.entries
            if one.state != GONE
        }

    def warn(self, path: str | Path, folder: str | Path) -> None:
        """Log that answers of a file do not count, and why; `folder` is results/<dataset>."""
        others = [one for one in self.entries if one.state != COUNTS]
        if others:
            log.warning(
                "%s: %d of %d answers do not count, such as %s about %s. Their images or classes "
                'are gone, or a class was added after "none of these". After renaming a class, run '
                "latteclip rename-class %s OLD NEW.",
                path,
                len(others),
                len(self.entries),
                one_line(others[0].classname or WORDS.get(others[0].kind), 80),
                one_line(others[0].image_id, 80),
                folder,
            )

    def as_json(self) -> dict[str, Any]:
        """Return the content as JSON has it."""
        return dict(
            SAVED.dump_python(
                self, mode="json", by_alias=True, exclude_defaults=True
            )
        )


SAVED = TypeAdapter(SavedAnswers)


@dataclass(frozen=True)
class AnswerFile:
    """A file of answers, and the images and classes that they may name."""

    path: Path
    images: pa.Table  # columns image_id and checksum of IMAGES
    classnames: Sequence[str]
    plan: str = PLAN_OF_TEACHING  # or a digest

    def document(self, answers: Iterable[Answer] = ()) -> SavedAnswers:
        """Return the content of a file with answers about these images and classes."""
        return SavedAnswers(self.plan, [*answers], [*self.classnames])

    def parse(self, content: bytes, where: str) -> SavedAnswers:
        """Return what a document of this plan says now, or raise UserError."""
        saved = _parse(content, where)
        if saved.plan != self.plan:
            raise UserError(
                f"{where} answers questions about other images; nothing was taken from it."
            )
        return self._resolve(saved, where)

    def _resolve(self, saved: SavedAnswers, where: str) -> SavedAnswers:
        """Return the answers with the names that their images have now, and with their states."""
        names = {*self.classnames}
        rows = locate(
            [(one.image_id, one.content) for one in saved.entries], self.images
        )
        images = (
            self.images.select(["image_id", "checksum"]).take(rows).to_pylist()
        )
        entries = []
        for answer, image in zip(saved.entries, images, strict=True):
            offered = answer.offered
            is_known = answer.kind == UNSURE or answer.classname in names
            if answer.kind == NONE:
                offered = offered or tuple(saved.classes)
                is_known = names <= {*offered}
            now: dict[str, Any] = {"state": GONE}
            if image["image_id"] is not None:
                now = {
                    "image_id": image["image_id"],
                    "content": image["checksum"].hex(),
                    "state": COUNTS if is_known else LAPSED,
                }
            entries.append(replace(answer, offered=offered, **now))
        _check_unique(entries, where)
        return replace(saved, entries=entries)

    def read(self) -> SavedAnswers:
        """Return the answers of the file; none where there is no file."""
        if not self.path.exists():
            return self.document()
        return self.parse(self.path.read_bytes(), str(self.path))

    def update(
        self,
        changed: Mapping[str, Answer],
        removed: Collection[str] = (),
        *,
        keeps_earlier: bool = False,
    ) -> dict[str, Answer]:
        """Change and remove some answers by their images, and return all about now.

        The file keeps what other processes have saved, and answers about other images and classes.
        It may keep earlier answers about the same images as well, but imported checks replace what
        was imported to teach.
        """
        added = self._resolve(
            self.document(changed.values()), "The change"
        ).entries
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            before = self.read()
            if keeps_earlier:
                earlier = {
                    image_id: answer
                    for image_id, answer in before.answers.items()
                    if image_id not in removed
                }
                added = [
                    one
                    for one in added
                    if one.image_id not in earlier
                    or (one.drawn_from and earlier[one.image_id].is_imported)
                ]
            replaced = {*removed, *(one.image_id for one in added)}
            others = [
                one
                for one in before.entries
                if one.state == GONE or one.image_id not in replaced
            ]
            saved = self.document([*others, *added])
            write_json(self.path, saved.as_json())
        return saved.answers


def rename_in_answers(path: Path, old: str, new: str) -> int:
    """Give a class another name in a file of answers, and return how many answers name it."""
    name_of = {old: new}
    with locked(path):
        saved = read_answer_file(path)
        entries = [
            replace(
                one,
                classname=new if one.classname == old else one.classname,
                offered=tuple(name_of.get(name, name) for name in one.offered),
            )
            for one in saved.entries
        ]
        classes = [name_of.get(name, name) for name in saved.classes]
        write_json(
            path, replace(saved, entries=entries, classes=classes).as_json()
        )
    return sum(one.classname == old for one in saved.entries)


def read_answer_file(path: Path) -> SavedAnswers:
    """Return the content of a file of answers as it is. UserError: it is no such file."""
    return _parse(path.read_bytes(), str(path))


def _parse(content: bytes, where: str) -> SavedAnswers:
    try:
        return SAVED.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise UserError(
            f"{where} is not a file of answers of latteclip ({one_line(place)} must "
            f"{wanted(first)})."
        ) from None


def _check_unique(entries: Iterable[Answer], where: str) -> None:
    """Raise UserError if two answers about one image differ, as in a file that was merged."""
    first: dict[str, Answer] = {}
    for one in entries:
        if one.state == GONE:
            continue
        other = first.setdefault(one.image_id, one)
        if other.meaning != one.meaning:
            raise UserError(
                f"{where} has two answers about {one_line(one.image_id, 120)!r}: "
                f"{one_line(other.meaning, 80)!r} and {one_line(one.meaning, 80)!r}. "
                "Remove one of them."
            )


def locate(images: Sequence[tuple[str, str | None]], index: pa.Table) -> pa.Array:
    """Return the rows of images in an index, given names and contents; null: it is not there.

    A row has the name and the content, or else the content alone. A content of None is any. Images
    of different names stay different. Accents of names may be characters of their own, as on macOS.
    """
    names = pa.array([name for name, _ in images], pa.string())
    ids = index["image_id"]
    alike = pc.index_in(
        *(pc.utf8_normalize(one, form="NFC") for one in (names, ids))
    )
    named = pc.coalesce(pc.index_in(names, ids), alike)
    checksums = index["checksum"].take(named).to_pylist()
    contents = [content for _, content in images]
    rows = [
        row if content in (None, checksum and checksum.hex()) else None
        for row, content, checksum in zip(
            named.to_pylist(), contents, checksums, strict=True
        )
    ]
    # Rows of the same content by other names, the first one last.
    wanted = [bytes.fromhex(content) for content in contents if content]
    is_same = pc.is_in(index["checksum"], pa.array(wanted, index["checksum"].type))
    free = defaultdict[str | None, list[int]](list)
    taken = {*rows}
    for row in reversed(np.flatnonzero(is_same.to_numpy()).tolist()):
        if row not in taken:
            free[index["checksum"][row].as_py().hex()].append(row)
    return pa.array(
        [
            free[content].pop() if row is None and free[content] else row
            for row, content in zip(rows, contents, strict=True)
        ],
        pa.int64(),
    )
