"""Answers to requests, kept beyond the run that asked.

A store is a folder of files to which processes append side by side; see `answer_files`.
"""

import contextlib
import json
import logging
import os
import uuid
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from latteclip.captions import answer_files, kept
from latteclip.core.files import remove_left_over, replacing

log = logging.getLogger(__name__)
MAX_PARTS = 8  # closed parts beyond which a run leaves one in their place


@dataclass(frozen=True)
class Answer:
    """What a model wrote, as it wrote it."""

    text: str
    finish_reason: str  # "stop", "length" where max_new_tokens cut it, or "error"
    n_tokens: int | None
    error: str | None = None  # why there is no text; such an answer is not kept
    n_read: int | None = None  # tokens of the request, pictures included


@dataclass(frozen=True)
class Tokens:
    """What answers took, whenever they were asked for; unknown numbers count as 0."""

    read: int = 0
    written: int = 0

    @classmethod
    def of(cls, *answers: Answer) -> "Tokens":
        """Return the sums over some answers."""
        return cls(sum(a.n_read or 0 for a in answers), sum(a.n_tokens or 0 for a in answers))


NO_TOKENS = Tokens()


@dataclass(frozen=True)
class KeptAnswer:
    """An answer in the store, who gave it, and on which day (UTC)."""

    answer: Answer
    engine: str
    date: str


@dataclass(frozen=True)
class RowOutcome:
    """What a row of the table of captions says of its request."""

    caption: str
    finish_reason: str
    n_tokens: int | None
    attempts: int
    error: str | None
    digest: str | None  # of the request; None where nothing was asked
    engine: str
    date: str | None
    tokens: Tokens = NO_TOKENS


def today() -> str:
    """The day in UTC."""
    return datetime.now(UTC).date().isoformat()


class AnswerStore:
    """Answers by the digest of their request; a context manager that closes its part."""

    def __init__(self, folder: str | Path, fault: kept.Fault = kept.fault) -> None:
        """Read which answers the folder holds; it is created if it is missing.

        Args:
            folder: of the parts.
            fault: what is wrong with an answer, so that it is not kept here. One that is there all
                the same counts as if it were not, and is dropped.
        """
        self._fault = fault
        self._dropped: list[str] = []  # for each of these the reason
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own: answer_files.Part | None = None
        self._own_number = -1
        self._files: list[BinaryIO] = []
        self._places: dict[int, tuple[int, int]] = {}  # key to (part, offset), of unsorted parts
        self._sorted: list[BinaryIO] = []
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.seal()
        self._close()
        if kind is None:
            self._compact()

    def __len__(self) -> int:
        keys = (key for file in self._sorted for _, key, _ in self._lines(file))
        return len({*self._places, *keys})

    def __contains__(self, digest: str) -> bool:
        key = answer_files.key_of(digest)
        return key in self._places or self._in_sorted(key) is not None

    def held(self) -> "Held":
        """What a worker process needs to tell what is held."""
        keys = np.fromiter(self._places, np.uint64, len(self._places))
        keys.sort()
        return Held(keys, tuple(file.name for file in self._sorted), self._fault)

    def get(self, digest: str) -> KeptAnswer | None:
        """The answer to a request, if it is held."""
        key = answer_files.key_of(digest)
        try:
            values = self._values(key)
        except (OSError, ValueError):  # a shared file system, and another job tidied up
            self._load()
            values = self._values(key)
        if values is None or values.get("digest") != digest:
            return None
        answer = Answer(
            values["text"],
            values["finish_reason"],
            values["n_tokens"],
            n_read=values.get("n_read"),
        )
        return KeptAnswer(answer, values["engine"], values["date"])

    def add(self, digest: str, answer: Answer, engine: str) -> str | None:
        """Keep an answer: at once for other processes, on the disk within SYNC_SECONDS.

        Returns:
            Why it is not kept, where something is wrong with it.
        """
        values: dict[str, object] = {
            "digest": digest,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "n_tokens": answer.n_tokens,
            "n_read": answer.n_read,
            "engine": engine,
            "date": today(),
        }
        if (fault := self._fault(values)) is not None:
            return fault
        if self._own is not None and self._own.is_gone():
            self.seal()
        if self._own is None:
            self._own = answer_files.Part(self.folder)
            self._own_number = len(self._files)
            self._files.append(self._own.path.open("rb"))
        offset = self._own.append(answer_files.line_of(values))
        self._places[answer_files.key_of(digest)] = (self._own_number, offset)
        return None

    def seal(self) -> None:
        """Close this process's part; further answers go to a new one."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def _values(self, key: int) -> dict[str, Any] | None:
        place = self._places.get(key)
        return self._in_sorted(key) if place is None else self._read(place)

    def _in_sorted(self, key: int) -> dict[str, Any] | None:
        """The answer with a key in the sorted parts, if nothing is wrong with it."""
        for file in self._sorted:
            values = answer_files.bisect(file, key)
            fault = None if values is None else self._fault(values)
            if fault is not None:
                self._dropped.append(fault)
            elif values is not None:
                return values
        return None

    def _read(self, place: tuple[int, int]) -> dict[str, Any]:
        number, offset = place
        self._files[number].seek(offset)
        answer: dict[str, Any] = json.loads(self._files[number].readline())
        return answer

    def _load(self) -> None:
        """Index every whole line; start anew if a part vanishes meanwhile."""
        while True:
            self._close()
            self._files, self._sorted, self._places, self._dropped = [], [], {}, []
            try:
                for path in self._paths():
                    self._index(path)
            except FileNotFoundError:
                continue
            break
        if self._dropped:
            log.warning(
                "%s: dropped %d kept answers that cannot be used (the first: %s); what they "
                "answered is asked again.",
                self.folder,
                len(self._dropped),
                self._dropped[0],
            )

    def _close(self) -> None:
        for file in (*self._files, *self._sorted):
            file.close()

    def _paths(self) -> list[Path]:
        paths = sorted(self.folder.glob(f"*{answer_files.CLOSED}"))
        return [path for path in paths if path.exists() or not path.is_symlink()]  # to nowhere

    def _index(self, path: Path) -> None:
        if path.name.endswith(answer_files.SORTED):
            self._sorted.append(path.open("rb"))
            return
        number = len(self._files)
        if self._own is not None and path == self._own.path:
            self._own_number = number
        self._files.append(path.open("rb"))
        for offset, key, _ in self._lines(self._files[-1]):
            self._places[key] = (number, offset)

    def _lines(self, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
        """(offset, key, line) of the whole lines with nothing wrong; notes the others."""
        for offset, line in answer_files.whole_lines(file):
            values = answer_files.object_of(line)
            if (fault := self._fault(values)) is None:
                yield offset, answer_files.key_of(values["digest"]), line
            else:
                self._dropped.append(fault)

    def _compact(self) -> None:
        """Put one sorted part in the place of many, or of some with answers that were dropped."""
        remove_left_over(self.folder)
        parts = [path for path in self._paths() if answer_files.is_closed(path)]
        if len(parts) <= (0 if self._dropped else MAX_PARTS):
            return
        with (
            replacing(self.folder / f"{uuid.uuid4().hex}{answer_files.SORTED}") as temporary,
            temporary.open("wb") as whole,
        ):
            self._write_sorted(parts, whole)
            whole.flush()
            os.fsync(whole.fileno())
        for path in parts:
            path.unlink(missing_ok=True)

    def _write_sorted(self, parts: Sequence[Path], whole: BinaryIO) -> None:
        """Write the lines of parts in the order of their keys, of equal ones the first."""
        keys, places, files = array("Q"), array("Q"), []
        with contextlib.ExitStack() as stack:
            for path in parts:
                with contextlib.suppress(FileNotFoundError):
                    files.append(stack.enter_context(path.open("rb")))
                    for offset, key, _ in self._lines(files[-1]):
                        keys.append(key)
                        places.extend((len(files) - 1, offset))
            _, first = np.unique(np.frombuffer(keys, np.uint64), return_index=True)
            where = np.frombuffer(places, np.uint64).reshape(-1, 2)[first]
            for number, offset in where.tolist():
                files[number].seek(offset)
                whole.write(files[number].readline())


@dataclass(frozen=True)
class Held:
    """Which answers a store held when it was asked: a worker process can tell."""

    keys: np.ndarray  # sorted uint64: of the answers in parts that are not sorted
    parts: tuple[str, ...]  # that are
    fault: kept.Fault  # see `AnswerStore`

    def __contains__(self, digest: object) -> bool:
        key = answer_files.key_of(str(digest))
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        if place < len(self.keys) and self.keys[place] == key:
            return True
        return any(self._is_in(path, key) for path in self.parts)

    def _is_in(self, path: str, key: int) -> bool:
        """Where another job has tidied the part away, it is not there: the store has the word."""
        try:
            with Path(path).open("rb") as file:
                values = answer_files.bisect(file, key)
        except OSError:
            return False
        return values is not None and self.fault(values) is None
