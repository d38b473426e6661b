"""Answers to requests, kept beyond the run that asked.

A store is a folder of files to which processes append side by side; see `answer_files`.
"""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
    n_read: int | None = None  # tokens of the request, pictures included; not kept


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
        self._places: dict[int, tuple[int, int]] = {}  # key to (part, offset)
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.seal()
        for file in self._files:
            file.close()
        if kind is None:
            self._compact()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: str) -> bool:
        return answer_files.key_of(digest) in self._places

    def keys(self) -> np.ndarray:
        """Sorted uint64 [answers]: the head of each digest; see `has`."""
        keys = np.fromiter(self._places, np.uint64, len(self._places))
        keys.sort()
        return keys

    def get(self, digest: str) -> KeptAnswer | None:
        """The answer to a request, if it is held."""
        place = self._places.get(answer_files.key_of(digest))
        if place is None:
            return None
        try:
            values = self._read(place)
        except (OSError, ValueError):  # a shared file system, and another job tidied up
            self._load()
            place = self._places.get(answer_files.key_of(digest))
            values = {} if place is None else self._read(place)
        if values.get("digest") != digest:
            return None
        answer = Answer(values["text"], values["finish_reason"], values["n_tokens"])
        return KeptAnswer(answer, values["engine"], values["date"])

    def add(self, digest: str, answer: Answer, engine: str) -> str | None:
        """Keep an answer: at once for other processes, on the disk within SYNC_SECONDS.

        Returns:
            Why it is not kept, where something is wrong with it.
        """
        values = {"digest": digest, **asdict(answer), "engine": engine, "date": today()}
        del values["error"], values["n_read"]
        if (fault := self._fault(values)) is not None:
            return fault
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

    def _read(self, place: tuple[int, int]) -> dict[str, Any]:
        number, offset = place
        self._files[number].seek(offset)
        answer: dict[str, Any] = json.loads(self._files[number].readline())
        return answer

    def _load(self) -> None:
        """Index every whole line; start anew if a part vanishes meanwhile."""
        while True:
            for file in self._files:
                file.close()
            self._files, self._places, self._dropped = [], {}, []
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

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{answer_files.CLOSED}"))

    def _index(self, path: Path) -> None:
        number = len(self._files)
        if self._own is not None and path == self._own.path:
            self._own_number = number
        self._files.append(path.open("rb"))
        for offset, key, _ in self._lines(self._files[-1]):
            self._places[key] = (number, offset)

    def _lines(self, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
        """(offset, key, line) of the whole lines with nothing wrong; notes the others."""
        for offset, line in answer_files.whole_lines(file):
            values = _object(line)
            if (fault := self._fault(values)) is None:
                yield offset, answer_files.key_of(values["digest"]), line
            else:
                self._dropped.append(fault)

    def _compact(self) -> None:
        """Put one part in the place of many, or of some with answers that were dropped."""
        remove_left_over(self.folder)
        parts = [path for path in self._paths() if answer_files.is_closed(path)]
        if len(parts) <= (0 if self._dropped else MAX_PARTS):
            return
        seen: set[int] = set()
        with (
            replacing(self.folder / f"{uuid.uuid4().hex}{answer_files.CLOSED}") as temporary,
            temporary.open("wb") as whole,
        ):
            for path in parts:
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    for _, key, line in self._lines(file):
                        if key not in seen:
                            seen.add(key)
                            whole.write(line)
            whole.flush()
            os.fsync(whole.fileno())
        for path in parts:
            path.unlink(missing_ok=True)


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; an empty one where it is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def has(keys: np.ndarray, digest: str) -> bool:
    """Whether the head of a digest is among sorted `keys`: what a worker process can tell."""
    key = np.uint64(answer_files.key_of(digest))
    place = int(np.searchsorted(keys, key))
    return place < len(keys) and keys[place] == key
