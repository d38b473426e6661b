"""Answered requests, kept beyond the run that asked them.

A store is a folder of JSON Lines files ("parts"). Each process appends to a part of its own, so
that no lock is needed, and a part is `<name>.open.jsonl` until its process closes it. A line opens
with a checksum over the rest of it: what was torn by a crash is not read.
"""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from latteclip.core.files import replacing

log = logging.getLogger(__name__)
OPEN, CLOSED = ".open.jsonl", ".jsonl"
SYNC_ANSWERS, SYNC_SECONDS = 200, 30.0  # written to the disk at least as often
MAX_PARTS = 8  # closed parts beyond which a run leaves one in their place
ABANDONED = 24 * 3600  # seconds after which a part that nobody closed counts as closed
PREFIX = b'{"crc": "'
DIGEST_AT = len(PREFIX) + len(b'00000000", "digest": "')
KEY_LENGTH = 16  # hexadecimal digits of a digest by which the index finds its line


@dataclass(frozen=True)
class Answer:
    """What a model wrote, as it wrote it."""

    text: str
    finish_reason: str  # "stop", "length" where max_new_tokens cut it, or "error"
    n_tokens: int | None
    error: str | None = None  # why there is no text; such an answer is not kept


@dataclass(frozen=True)
class Kept:
    """An answer in the store, who gave it, and on which day (UTC)."""

    answer: Answer
    engine: str
    date: str


def today() -> str:
    """The day in UTC."""
    return datetime.now(UTC).date().isoformat()


class AnswerStore:
    """Answers by the digest of their request; a context manager that closes its part."""

    def __init__(self, folder: str | Path) -> None:
        """Read which answers the folder holds; it is made where it is not there."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own: _Part | None = None
        self._own_number = -1
        self._files: list[BinaryIO] = []
        self._places: dict[int, tuple[int, int]] = {}  # key to (part, offset)
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seal()
        for file in self._files:
            file.close()
        if kind is None:
            self._compact()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: str) -> bool:
        return _key(digest) in self._places

    def keys(self) -> np.ndarray:
        """Sorted uint64 [answers]: the head of each digest; see `has`."""
        keys = np.fromiter(self._places, np.uint64, len(self._places))
        keys.sort()
        return keys

    def get(self, digest: str) -> Kept | None:
        """The answer to a request, if it is held."""
        place = self._places.get(_key(digest))
        if place is None:
            return None
        try:
            values = self._read(place)
        except (OSError, ValueError):  # a shared file system, and another job tidied up
            self._load()
            place = self._places.get(_key(digest))
            values = {} if place is None else self._read(place)
        if values.get("digest") != digest:
            return None
        answer = Answer(values["text"], values["finish_reason"], values["n_tokens"])
        return Kept(answer, values["engine"], values["date"])

    def add(self, digest: str, answer: Answer, engine: str) -> None:
        """Keep an answer: at once for other processes, on the disk within SYNC_SECONDS."""
        if self._own is None:
            self._own = _Part(self.folder)
            self._own_number = len(self._files)
            self._files.append(self._own.path.open("rb"))
        values = {"digest": digest, **asdict(answer), "engine": engine, "date": today()}
        del values["error"]
        offset = self._own.append(_line(values))
        self._places[_key(digest)] = (self._own_number, offset)

    def seal(self) -> None:
        """Close this process's part; further answers go to a new one."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def _read(self, place: tuple[int, int]) -> dict[str, Any]:
        number, offset = place
        self._files[number].seek(offset)
        answer: dict[str, Any] = json.loads(self._files[number].readline())
        return answer

    def _load(self) -> None:
        """Index every whole line; anew where a part vanishes meanwhile."""
        while True:
            for file in self._files:
                file.close()
            self._files, self._places = [], {}
            try:
                for path in sorted(self.folder.glob(f"*{CLOSED}")):
                    self._index(path)
                return
            except FileNotFoundError:
                continue

    def _index(self, path: Path) -> None:
        number = len(self._files)
        if self._own is not None and path == self._own.path:
            self._own_number = number
        self._files.append(path.open("rb"))
        for offset, line in _whole_lines(self._files[-1]):
            self._places[_key_of_line(line)] = (number, offset)

    def _compact(self) -> None:
        """Leave one part in the place of many, for folders that live for years."""
        parts = [path for path in sorted(self.folder.glob(f"*{CLOSED}")) if _is_closed(path)]
        if len(parts) <= MAX_PARTS:
            return
        seen: set[int] = set()
        with (
            replacing(self.folder / f"{uuid.uuid4().hex}{CLOSED}") as temporary,
            temporary.open("wb") as whole,
        ):
            for path in parts:
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    for _, line in _whole_lines(file):
                        if (key := _key_of_line(line)) not in seen:
                            seen.add(key)
                            whole.write(line)
            whole.flush()
            os.fsync(whole.fileno())
        for path in parts:
            path.unlink(missing_ok=True)


class _Part:
    """The file that one process appends to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid.uuid4().hex}{OPEN}"
        self._file = self.path.open("ab", buffering=0)
        self._size = self._unsynced = 0
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync_now_and_then, daemon=True)
        self._syncer.start()

    def append(self, line: bytes) -> int:
        """Write a line; the offset at which it stands."""
        written = self._file.write(line)
        if written != len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written")
        offset, self._size = self._size, self._size + written
        self._unsynced += 1
        if self._unsynced >= SYNC_ANSWERS:
            self._sync()
        return offset

    def close(self) -> None:
        self._closing.set()
        self._syncer.join()
        self._sync()
        self._file.close()
        self.path.rename(self.path.with_name(self.path.name.removesuffix(OPEN) + CLOSED))

    def _sync(self) -> None:
        self._unsynced = 0
        os.fsync(self._file.fileno())

    def _sync_now_and_then(self) -> None:
        while not self._closing.wait(SYNC_SECONDS):
            if self._unsynced:
                self._sync()


def has(keys: np.ndarray, digest: str) -> bool:
    """Whether the head of a digest is among sorted `keys`: what a worker process can tell."""
    key = np.uint64(_key(digest))
    place = int(np.searchsorted(keys, key))
    return place < len(keys) and keys[place] == key


def _is_closed(path: Path) -> bool:
    if not path.name.endswith(OPEN):
        return True
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False


def _key(digest: str) -> int:
    return int(digest[:KEY_LENGTH], 16)


def _key_of_line(line: bytes) -> int:
    return int(line[DIGEST_AT : DIGEST_AT + KEY_LENGTH], 16)


def _line(values: dict[str, object]) -> bytes:
    """A JSON object in one line, whose first member is the checksum of what follows it."""
    rest = b'", ' + json.dumps(values).encode()[1:] + b"\n"
    return PREFIX + b"%08x" % zlib.crc32(rest) + rest


def _whole_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every line whose checksum is right."""
    offset = 0
    for line in file:
        head, rest = line[: len(PREFIX) + 8], line[len(PREFIX) + 8 :]
        if head == PREFIX + b"%08x" % zlib.crc32(rest) and line.endswith(b"\n"):
            yield offset, line
        offset += len(line)
