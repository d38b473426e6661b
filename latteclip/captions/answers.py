"""Answers to requests, cached in SQLite beyond the run that asked, and what a valid answer is."""

import contextlib
import errno
import functools
import hashlib
import json
import operator
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from latteclip.captions.engine import CaptionerSettings, Response
from latteclip.captions.pictures import Layout
from latteclip.captions.questions import Choices
from latteclip.core import files
from latteclip.core.errors import UserError
from latteclip.core.files import sqlite_uri

DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits

COMMIT_ANSWERS, COMMIT_SECONDS = 100, 10.0  # written to the disk at least as often
LOCK_SECONDS = 60.0  # to wait while another process writes
MAX_BYTES = 2**20  # bytes of an answer, at most
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


@dataclass(frozen=True)
class Identity:
    """Everything that decides an answer, besides the images and the prompt."""

    model: str  # see `fingerprint`
    revision: str | None
    dtype: str
    quantization: str | None
    max_new_tokens: int
    layout: Layout


def digest(
    contents: Sequence[bytes],
    prompt: str,
    identity: Identity,
    choices: Choices | None = None,
) -> str:
    """Return DIGEST_LENGTH hexadecimal digits for a request about image files of these bytes."""
    images = [hashlib.sha256(content).digest() for content in contents]
    shared = _shared(prompt, identity, choices)
    return files.digest(b"".join(images), shared)[:DIGEST_LENGTH]


@functools.lru_cache(maxsize=4096)
def _shared(prompt: str, identity: Identity, choices: Choices | None) -> bytes:
    wanted = None if choices is None else asdict(choices)
    return json.dumps([prompt, asdict(identity), wanted], sort_keys=True).encode()


def fingerprint(settings: CaptionerSettings) -> str:
    """Return a digest of a folder's files, name and commit on the hub, or a server's name."""
    from huggingface_hub import hf_hub_download

    model = settings.model
    if Path(model).is_dir():
        return files.fingerprint(model)
    if settings.loads_model:
        with contextlib.suppress(OSError, ValueError):  # without the file no engine starts
            file = hf_hub_download(model, "config.json", revision=settings.revision)
            return f"{model}@{Path(file).parent.name}"
    return model


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
        raise UserError(
            f"The cached answers of {path} cannot be used ({error}); see that nothing else uses it "
            "and that its disk can be written, or delete it: its requests are asked again."
        ) from None


def problem(answer: Response) -> str | None:
    """Return why an engine's answer, whose values may be of any type, cannot be cached."""
    try:
        size = max(len(text.encode()) for text in (answer.text, answer.finish_reason))
        counts = [operator.index(n or 0) for n in (answer.n_tokens, answer.n_read)]
    except (AttributeError, TypeError, UnicodeEncodeError):
        return "it is no text with a number of tokens"
    if size > MAX_BYTES or min(counts) < 0 or max(counts) > MAX_TOKENS:
        return f"it has {size} bytes and {counts} tokens"
    return None
