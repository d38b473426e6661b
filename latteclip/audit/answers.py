"""A person's answers: one JSON line each, on disk before the next image is shown.

The first line names the plan that the images were drawn by. The last line about an image counts;
one that says UNDONE takes the answer before it back.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

CLASS, NONE, UNSURE, UNDONE = "class", "none", "unsure", "undone"
KINDS = (CLASS, NONE, UNSURE, UNDONE)
VERSION = 1  # of the format
LONGEST = 100_000_000  # bytes of a file of answers


@dataclass(frozen=True)
class Answer:
    """What a person says of an image."""

    image_id: str
    kind: str  # one of KINDS
    classname: str | None = None  # where the kind is CLASS

    def line(self) -> dict[str, Any]:
        """As it stands in a file."""
        said = {"image": self.image_id, "answer": self.kind}
        return said if self.classname is None else {**said, "class": self.classname}


@dataclass(frozen=True)
class Asked:
    """What answers may be about."""

    plan: str  # digest
    dataset: str
    image_ids: frozenset[str]
    classnames: tuple[str, ...]

    def header(self) -> dict[str, Any]:
        """The first line of a file of answers."""
        return {"plan": self.plan, "dataset": self.dataset, "version": VERSION}

    def check_header(self, values: Any, where: str) -> None:
        """UserError for answers to another audit."""
        if not isinstance(values, dict) or "plan" not in values:
            raise UserError(f"{where} is not a file of answers of latteclip audit.")
        if values["plan"] != self.plan:
            whose = one_line(values.get("dataset"), 80)
            raise UserError(
                f"{where} answers another audit (of {whose}, plan {one_line(values['plan'], 20)}) "
                f"than that of {self.dataset}, plan {self.plan}; nothing was taken from it."
            )

    def answer(self, values: Any, where: str) -> Answer:
        """An answer from its JSON object; UserError where it is none of this audit."""
        if not isinstance(values, dict) or not isinstance(values.get("image"), str):
            raise UserError(f"{where} is not an answer: it names no image.")
        found = Answer(values["image"], values.get("answer", ""), values.get("class"))
        if found.image_id not in self.image_ids:
            raise UserError(
                f"{where} is about {one_line(found.image_id, 120)!r}, of which this audit does not "
                "ask."
            )
        if found.kind not in KINDS:
            said = one_line(found.kind, 40)
            raise UserError(f"{where} says {said!r}; an answer is one of {', '.join(KINDS)}.")
        if found.kind == CLASS and found.classname not in self.classnames:
            said = str(found.classname)
            raise UserError(
                f"{where} names the class {one_line(said, 80)!r}, which is unknown; "
                f"{one_line(suggestion(said, self.classnames))}"
            )
        return found if found.kind == CLASS else Answer(found.image_id, found.kind)


class Answers:
    """The answers of an audit, and the file that keeps them.

    Whoever adds some must be the only one; anybody may read them meanwhile.
    """

    def __init__(self, path: Path, asked: Asked) -> None:
        """Read what is there; a last line that was cut off in writing counts for nothing.

        Raises:
            UserError: the file is of another audit, or somebody broke a line of it.
        """
        self.path = path
        self.asked = asked
        self._said: list[Answer] = []
        self._length = 0  # bytes of the file that are whole lines
        self._missing = b""  # end of the last of them
        if path.exists():
            self._read()

    def standing(self) -> dict[str, Answer]:
        """The answer of each image that has one, in the order in which they were given."""
        found: dict[str, Answer] = {}
        for answer in self._said:
            found.pop(answer.image_id, None)
            if answer.kind != UNDONE:
                found[answer.image_id] = answer
        return found

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers; when this returns, they are on the disk."""
        added = list(answers)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [{**answer.line(), "at": now} for answer in added]
        if not self._length:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, self.asked.header())
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        with self.path.open("ab") as file:
            file.truncate(self._length)
            file.write(self._missing + content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.path.parent)
        self._length += len(self._missing + content)
        self._missing = b""
        self._said += added

    def undo(self) -> None:
        """Take the last answer back, if there is one."""
        standing = list(self.standing())
        if standing:
            self.add([Answer(standing[-1], UNDONE)])

    def _read(self) -> None:
        content = _content(self.path)
        *whole, rest = content.split(b"\n")
        self._length = len(content) - len(rest)
        if rest and _parsed(rest) is not None:
            whole.append(rest)
            self._length, self._missing = len(content), b"\n"
        if not whole:  # not even the first line was finished
            return
        self.asked.check_header(_parsed(whole[0]), str(self.path))
        for number, line in enumerate(whole[1:], start=2):
            self._said.append(self.asked.answer(_parsed(line), f"{self.path}, line {number},"))


def _parsed(line: bytes) -> Any:
    """The value of a JSON line; None where it is not valid."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _content(path: Path) -> bytes:
    """The bytes of a file of answers, or of a pipe; UserError where there are too many."""
    with path.open("rb") as file:
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise UserError(f"{path} is too large to be a file of answers.")
    return content


def _sync_folder(folder: Path) -> None:
    """Let a file's name be on the disk as well as its content, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_exported(path: str, asked: Asked) -> list[Answer]:
    """The answers that the page of --offline exports.

    Raises:
        UserError: the file is missing, is not such a one, or is of another audit.
    """
    try:
        values = json.loads(_content(Path(path)))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({one_line(error, 80)}); export the answers once more."
        ) from None
    asked.check_header(values, path)
    listed = values.get("answers")
    if not isinstance(listed, list):
        raise UserError(f"{path} has no list of answers; export them once more.")
    found = [asked.answer(one, f"{path}, answer {number},") for number, one in enumerate(listed, 1)]
    for name, times in Counter(one.image_id for one in found).items():
        if times > 1:
            raise UserError(f"{path} answers {one_line(name, 120)!r} more than once.")
    return found
