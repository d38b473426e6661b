"""The files of a store of answers.

Each process appends to a file of JSON Lines of its own (a "part"), so that no lock is needed; it is
called `<name>.open.jsonl` until its process closes it. A line begins with a checksum of the rest of
it: what a crash tore apart is not read.

Where there are many parts, their lines are put into one in the order of their keys
(`<name>.sorted.jsonl`), which is bisected and not read: a job opens it at once, however many
answers it holds, and looks at those that it asks for.
"""

import contextlib
import json
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from latteclip.captions.kept import fault_of_digest

OPEN, CLOSED, SORTED = ".open.jsonl", ".jsonl", ".sorted.jsonl"
SYNC_ANSWERS, SYNC_SECONDS = 200, 30.0  # written to the disk at least as often
ABANDONED = 24 * 3600  # seconds after which a part that nobody closed counts as closed
PREFIX = b'{"crc": "'
KEY_LENGTH = 16  # hexadecimal digits of a digest by which the index finds its line
LONGEST_LINE = 2**24  # bytes; what is longer is no answer and is read in pieces


class Part:
    """The file that one process appends to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid.uuid4().hex}{OPEN}"
        self._file = self.path.open("ab", buffering=0)
        self._size = self._unsynced = 0
        self._failed: OSError | None = None  # of the thread that writes to the disk
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync_now_and_then, daemon=True)
        self._syncer.start()

    def append(self, line: bytes) -> int:
        """Write a line; returns the offset at which it stands."""
        self._raise_failed()
        rest = memoryview(line)
        while rest:  # a disk that fills takes a piece, and says why with the next
            rest = rest[self._file.write(rest) :]
        offset, self._size = self._size, self._size + len(line)
        self._unsynced += 1
        if self._unsynced >= SYNC_ANSWERS:
            self._sync()
        return offset

    def is_gone(self) -> bool:
        """Whether another job took the part for abandoned, and put its answers elsewhere."""
        try:
            return os.fstat(self._file.fileno()).st_nlink == 0
        except OSError:  # on another machine
            return True

    def close(self) -> None:
        self._closing.set()
        self._syncer.join()
        self._sync()
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(self.path.with_name(self.path.name.removesuffix(OPEN) + CLOSED))

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _sync(self) -> None:
        self._raise_failed()
        self._unsynced = 0
        os.fsync(self._file.fileno())

    def _sync_now_and_then(self) -> None:
        """Also say that the part is not abandoned, however long its job waits for an answer."""
        try:
            while not self._closing.wait(SYNC_SECONDS):
                os.utime(self._file.fileno())
                if self._unsynced:
                    self._sync()
        except OSError as error:
            self._failed = error


def is_closed(path: Path) -> bool:
    """Whether nobody appends to a part any more."""
    if not path.name.endswith(OPEN):
        return True
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False


def key_of(digest: str) -> int:
    """The head of a digest, by which the index finds its line."""
    return int(digest[:KEY_LENGTH], 16)


def line_of(values: dict[str, object]) -> bytes:
    """A JSON object in one line, whose first member is the checksum of what follows it."""
    rest = b'", ' + json.dumps(values).encode()[1:] + b"\n"
    return PREFIX + b"%08x" % zlib.crc32(rest) + rest


def whole_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every line whose checksum is right."""
    offset = file.seek(0)
    while line := file.readline(LONGEST_LINE):
        if is_whole(line):
            yield offset, line
        offset += len(line)


def is_whole(line: bytes) -> bool:
    """Whether a line ends and its checksum is right."""
    head, rest = line[: len(PREFIX) + 8], line[len(PREFIX) + 8 :]
    return head == PREFIX + b"%08x" % zlib.crc32(rest) and line.endswith(b"\n")


def object_of(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; an empty one where it is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def bisect(file: BinaryIO, key: int) -> dict[str, Any] | None:
    """The object of a sorted part that has a key; lines that are not whole are passed over."""
    low, high = 0, file.seek(0, os.SEEK_END)  # the line begins between
    while low < high:
        middle = (low + high) // 2
        start = _line_start(file, middle) if middle > low else low
        found = _next_object(file, start, high)
        if found is None:
            high = middle
            continue
        end, values = found
        other = key_of(values["digest"])
        if other == key:
            return values
        low, high = (end, high) if other < key else (low, middle)
    return None


def _line_start(file: BinaryIO, offset: int) -> int:
    """Where the first line begins that does not begin before an offset, which is not 0."""
    file.seek(offset - 1)
    while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
        pass
    return file.tell()


def _next_object(file: BinaryIO, start: int, end: int) -> tuple[int, dict[str, Any]] | None:
    """The first object with a digest in whole lines that begin before `end`, and where it ends."""
    file.seek(start)
    while start < end and (line := file.readline(LONGEST_LINE)):
        start += len(line)
        values = object_of(line) if is_whole(line) else {}
        if fault_of_digest(values.get("digest")) is None:
            return start, values
    return None
