"""Answers to requests, cached in SQLite beyond the run that asked, and what a valid answer is.

A job writes one file, which is called after its shard (`2-of-4.sqlite`). Shards of one split hold
disjoint rows. So a job looks answers up in its file and in those of other splits, and writes to its
file alone.
"""

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line, printable

COMMIT_ANSWERS, COMMIT_SECONDS = 100, 10.0  # written to the disk at least as often
LOCK_SECONDS = 60.0  # to wait while another process writes
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system without locks
CHARACTERS_PER_TOKEN = 256  # more than any token of the known vocabularies has
MAX_CHARACTERS = 2**20  # of any answer
MAX_TOKENS = 2**31 - 1  # what the tables' column holds
MAX_WORD = 256  # characters of a finish reason
CREATE = """
    CREATE TABLE IF NOT EXISTS answers (
        digest TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, n_tokens INTEGER, n_read INTEGER,
        engine TEXT, date TEXT
    )
"""
SELECT = "SELECT text, finish_reason, n_tokens, n_read, engine, date FROM answers WHERE digest = ?"
INSERT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Answer:
    """An engine's answer to a request, as the model wrote it."""

    text: str
    finish_reason: str  # "stop", "length" where max_new_tokens cut it, or "error"
    n_tokens: int | None
    error: str | None = None  # why there is no text; such an answer is not cached
    n_read: int | None = None  # tokens of the request, pictures included
    engine: str = ""  # that gave it; of cached answers
    date: str = ""  # on which it did, UTC


def failed(error: str) -> Answer:
    """Return the answer to a request that could not be answered."""
    return Answer("", "error", None, error)


class AnswerCache:
    """Answers by the digest of their request; a context manager that commits at its end."""

    def __init__(self, folder: str | Path, name: str = "1-of-1") -> None:
        """Open the files of a folder, which is created if it is missing.

        Args:
            folder: where the files are.
            name: of the shard, whose file is written.

        Raises:
            UserError: a file is damaged, or cannot be opened.
        """
        self.path = Path(folder) / f"{name}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._pending: dict[str, Answer] = {}
        self._committed = time.monotonic()
        self._files = {self.path: _connected(self.path)}
        with _explained(self.path), self._files[self.path] as file:
            file.execute(CREATE)
        split = name.partition("-")[2]
        for path in sorted(self.path.parent.glob("*.sqlite")):
            if path.stem.partition("-")[2] != split:
                self._files[path] = _connected(path)
                self._files[path].execute("PRAGMA query_only = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        finally:
            for file in self._files.values():
                file.close()

    def __contains__(self, digest: str) -> bool:
        return self.get(digest) is not None

    def get(self, digest: str) -> Answer | None:
        """Return the answer to a request, if there is one."""
        if digest in self._pending:
            return self._pending[digest]
        for path, file in self._files.items():
            with _explained(path):
                row = file.execute(SELECT, [digest]).fetchone()
            if row is not None:
                text, reason, n_tokens, n_read, engine, date = row
                return Answer(text, reason, n_tokens, None, n_read, engine, date)
        return None

    def snapshot(self) -> "CachedKeys":
        """Return which requests have an answer by now, for worker processes."""
        found = []
        for path, file in self._files.items():
            with _explained(path):
                rows = file.execute("SELECT digest FROM answers")
                found.append(np.fromiter((_key(digest) for (digest,) in rows), np.uint64))
        return CachedKeys(np.sort(np.concatenate(found)))

    def add(self, digest: str, answer: Answer, engine: str) -> None:
        """Cache a valid answer; it is on the disk after the next commit."""
        self._pending[digest] = replace(answer, engine=engine, date=today())
        waiting = time.monotonic() - self._committed
        if len(self._pending) >= COMMIT_ANSWERS or waiting >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write the pending answers to the disk, all of them or none.

        Raises:
            UserError: the disk is full, or does not take them for another reason.
        """
        rows = [
            (digest, a.text, a.finish_reason, a.n_tokens, a.n_read, a.engine, a.date)
            for digest, a in self._pending.items()
        ]
        with _explained(self.path), self._files[self.path] as file:
            file.executemany(INSERT, rows)
        self._pending.clear()
        self._committed = time.monotonic()


@dataclass(frozen=True)
class CachedKeys:
    """The requests that had an answer when a job began."""

    keys: np.ndarray  # uint64, sorted

    def __contains__(self, digest: object) -> bool:
        key = np.uint64(_key(str(digest)))
        place = int(np.searchsorted(self.keys, key))
        return place < len(self.keys) and bool(self.keys[place] == key)


def _key(digest: str) -> int:
    return int(digest[:16], 16)


def _connected(path: Path) -> sqlite3.Connection:
    """Return a connection to a file, whose writer does without a write-ahead log."""
    with _explained(path):
        lockless = "" if _has_locks(path) else "?nolock=1"
        uri = f"{path.absolute().as_uri()}{lockless}"
        file = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)
        file.execute("PRAGMA journal_mode = DELETE")
    return file


def _has_locks(path: Path) -> bool:
    """Return whether the file system has the locks of SQLite; an absent file is created."""
    try:
        with path.open("ab") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into a sentence with a remedy."""
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        remedy = "see that nothing else uses it and that its disk can be written"
        if not isinstance(error, sqlite3.OperationalError):
            remedy = "delete it: its requests are asked again"
        raise UserError(
            f"The cached answers of {path} cannot be used ({error}); {remedy}, and rerun."
        ) from None


def today() -> str:
    """Return the day in UTC."""
    return datetime.now(UTC).date().isoformat()


def max_characters(max_new_tokens: int) -> int:
    """Return how long the text of so many tokens may be."""
    return min(max_new_tokens * CHARACTERS_PER_TOKEN, MAX_CHARACTERS)


def problem(answer: Answer, longest: int = MAX_CHARACTERS) -> str | None:
    """Return why an engine's answer is not valid; None where it is.

    Args:
        answer: with a text. Its values may be of other types than they should.
        longest: characters that the text may have.
    """
    text, reason = answer.text, answer.finish_reason
    if not isinstance(text, str):
        return f"its text is {_in_short(text)}"
    if len(text) > longest:
        return f"its text has {len(text)} characters, more than {longest}"
    if re.search("[\ud800-\udfff]", text):
        return "its text has half a character (a lone surrogate)"
    for number in (answer.n_tokens, answer.n_read):
        if number is not None and not (type(number) is int and 0 <= number <= MAX_TOKENS):
            return f"its number of tokens is {_in_short(number)}"
    is_word = isinstance(reason, str) and len(reason) <= MAX_WORD
    if not is_word or printable(reason) != reason or "\n" in reason:
        return f"its finish reason is {_in_short(reason)}"
    return None


def _in_short(value: Any) -> str:
    return one_line(ascii(value), 40)
