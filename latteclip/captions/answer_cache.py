"""Answers to requests, cached in SQLite beyond the run that asked, and what a valid answer is."""

import contextlib
import errno
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from latteclip.captions.requests import DIGEST_LENGTH, Response
from latteclip.core.errors import UserError
from latteclip.core.files import sqlite_uri
from latteclip.core.terminal import one_line

COMMIT_ANSWERS, COMMIT_SECONDS = 100, 10.0  # written to the disk at least as often
LOCK_SECONDS = 60.0  # to wait while another process writes
MAX_CHARACTERS = 2**20  # characters of an answer, at most
MAX_TOKENS = 2**31 - 1  # what the tables' column holds
CREATE = """
    CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, text TEXT, finish_reason TEXT,
        n_tokens INTEGER, n_read INTEGER, engine TEXT, date TEXT)
"""
INSERT = """
    INSERT OR IGNORE INTO answers
        (digest, text, finish_reason, n_tokens, n_read, engine, date)
    VALUES (:digest, :text, :finish_reason, :n_tokens, :n_read, :engine, :date)
"""


class AnswerCache(contextlib.AbstractContextManager["AnswerCache"]):
    """Answers by the digest of their request; a context manager that commits at its end.

    A job writes the file of its shard (`2-of-4.sqlite`) and reads those of other splits as well.
    """

    def __init__(self, folder: str | Path, name: str = "1-of-1") -> None:
        self.path = Path(folder) / f"{name}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._pending: dict[str, Response] = {}
        self._committed = time.monotonic()
        self._files = {self.path: _connected(self.path)}
        with _explained(self.path), self._files[self.path] as file:
            file.execute(CREATE)
        split = name.partition("-")[2]
        for path in sorted(self.path.parent.glob("*.sqlite")):
            # A file of no bytes is that of a job that begins, or was killed when it began.
            if path.stem.partition("-")[2] != split and path.stat().st_size:
                self._files[path] = _connected(path)
                self._files[path].execute("PRAGMA query_only = ON")

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        finally:
            for file in self._files.values():
                file.close()

    def get(self, digest: str) -> Response | None:
        if digest in self._pending:
            return self._pending[digest]
        for path, file in self._files.items():
            with _explained(path):
                row = file.execute(
                    "SELECT * FROM answers WHERE digest = ?", [digest]
                ).fetchone()
            if row is not None:
                return Response(**row)
        return None

    def digests(self) -> np.ndarray:
        """Return the digests of requests that have an answer on the disk: bytes [A], sorted."""
        blocks = []
        for path, file in self._files.items():
            with _explained(path):
                digests = [row[0] for row in file.execute("SELECT digest FROM answers")]
            blocks.append(np.array(digests, f"S{DIGEST_LENGTH}"))
        return np.sort(np.concatenate(blocks))

    def add(self, digest: str, answer: Response, engine: str) -> None:
        """Cache a valid answer, which is on the disk after the next commit."""
        today = datetime.now(UTC).date().isoformat()
        self._pending[digest] = replace(answer, engine=engine, date=today, digest=digest)
        waiting = time.monotonic() - self._committed
        if len(self._pending) >= COMMIT_ANSWERS or waiting >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write the pending answers to the disk, all of them or none."""
        with _explained(self.path), self._files[self.path] as file:
            file.executemany(INSERT, map(vars, self._pending.values()))
        self._pending.clear()
        self._committed = time.monotonic()


def _connected(path: Path) -> sqlite3.Connection:
    with _explained(path):
        file = sqlite3.connect(sqlite_uri(path), uri=True, timeout=LOCK_SECONDS)
        file.row_factory = sqlite3.Row
        file.execute("PRAGMA journal_mode = DELETE")
    return file


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as a UserError, or as an OSError where the disk is full."""
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise _unusable(path, error) from None


def _unusable(path: Path, reason: object) -> UserError:
    return UserError(
        f"The cached answers of {path} cannot be used ({reason}); see that nothing else uses it "
        "and that its disk can be written, or delete it: its requests are asked again."
    )


def problem(answer: Response) -> str | None:
    """Return why an engine's answer, whose values may be of any type, cannot be cached."""
    for text in (answer.text, answer.finish_reason):
        if not isinstance(text, str):
            return f"it has {one_line(ascii(text), 40)} in place of text"
        if len(text) > MAX_CHARACTERS:
            return f"it has {len(text)} characters, more than {MAX_CHARACTERS}"
        if re.search("[\ud800-\udfff]", text):
            return "it has half a character (a lone surrogate)"
    for number in (answer.n_tokens, answer.n_read):
        if number is not None and not (type(number) is int and 0 <= number <= MAX_TOKENS):
            return f"its number of tokens is {one_line(ascii(number), 40)}"
    return None
