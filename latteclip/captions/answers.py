"""Answers to requests: cached in SQLite beyond the run that asked, and as rows of a table."""

import contextlib
import errno
import itertools
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from latteclip.captions.engine import Response, loads_model
from latteclip.captions.pictures import Layout
from latteclip.captions.questions import Request
from latteclip.config.keys import CaptionerSection
from latteclip.core import files, tables
from latteclip.core.errors import UserError
from latteclip.core.files import sqlite_uri
from latteclip.core.terminal import FOR_RUN

log = logging.getLogger(__name__)
# Columns of a row, and the answer that they come from; None: nothing was asked.
Row = tuple[dict[str, Any], Response | None]
COMMIT_ANSWERS = 20  # written to the disk together
LOCK_SECONDS = 60.0  # to wait while another process writes
CREATE = """
    CREATE TABLE IF NOT EXISTS answers
        (digest TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, n_tokens INTEGER, n_read INTEGER)
"""
INSERT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)"
SELECT = "SELECT text, finish_reason, n_tokens, n_read FROM answers WHERE digest = ?"


def identity(captioner: CaptionerSection, layout: Layout, *, scoring: bool) -> str:
    """Return everything that decides an answer, besides the images and the question, as JSON."""
    decides = {
        "model": fingerprint(captioner),
        "revision": captioner.revision,
        "dtype": captioner.dtype,
        "quantization": captioner.quantization,
        # With scores no text is written, so its length decides nothing.
        "max_new_tokens": None if scoring else captioner.max_new_tokens,
        "layout": asdict(layout),
    }
    return json.dumps(decides, sort_keys=True)


def digest(request: Request, identity: str) -> str:
    """Return the key of a request's answer."""
    question = (request.prompt, repr(request.choices), identity)
    return files.digest(*request.checksums, *question)


def fingerprint(captioner: CaptionerSection) -> str:
    """Return a digest of a folder's files, name and commit on the hub, or a server's name."""
    from huggingface_hub import hf_hub_download

    model = captioner.model
    if Path(model).is_dir():
        return files.fingerprint(model)
    if loads_model(captioner):
        with contextlib.suppress(OSError, ValueError):  # without the file no engine starts
            file = hf_hub_download(model, "config.json", revision=captioner.revision)
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
        split = name.partition("-")[2]
        others = (
            path
            for path in sorted(self.path.parent.glob("*.sqlite"))
            # A file of no bytes is that of a job that begins, or was killed when it began.
            if path.stem.partition("-")[2] != split and path.stat().st_size
        )
        self._files = {path: _connected(path) for path in (self.path, *others)}
        with _explained(self.path), self._files[self.path] as file:
            file.execute(CREATE)

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
                if row := file.execute(SELECT, [digest]).fetchone():
                    return Response(*row)
        return None

    def add(self, digest: str, answer: Response) -> None:
        """Cache an answer, which is on the disk after the next commit."""
        self._pending[digest] = answer
        if len(self._pending) >= COMMIT_ANSWERS:
            self.commit()

    def commit(self) -> None:
        """Write the pending answers to the disk, all of them or none."""
        rows = [
            (digest, answer.text, answer.finish_reason, answer.n_tokens, answer.n_read)
            for digest, answer in self._pending.items()
        ]
        with _explained(self.path), self._files[self.path] as file:
            file.executemany(INSERT, rows)
        self._pending.clear()


def _connected(path: Path) -> sqlite3.Connection:
    with _explained(path):
        return sqlite3.connect(sqlite_uri(path), uri=True, timeout=LOCK_SECONDS)


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


# --- tables of answers ---------------------------------------------------------------------------


@dataclass
class AnswersMetadata:
    """The metadata of CAPTIONS and CLASS_SCORES: who answered, and what that took."""

    model: str  # which was asked, or the user's file
    requests: int = 0
    tokens_read: int = 0
    tokens_written: int = 0
    # Rows, which are images or groups.
    not_asked: int = 0  # those that `max_images` leaves out
    failed: int = 0
    refused: int = 0  # those about which a server refuses to answer
    empty: int = 0  # those with an empty caption

    @property
    def in_words(self) -> str:
        """What was asked, in words."""
        return (
            f"{self.requests:,} requests to {self.model}, {self.tokens_read:,} tokens read, "
            f"{self.tokens_written:,} written, {self.not_asked:,} images left out, "
            f"{self.failed:,} failed, {self.refused:,} refused, {self.empty:,} empty"
        )

    def count(self, columns: Mapping[str, Any], answer: Response | None) -> None:
        """Count a row and its answer."""
        if answer is None:
            self.not_asked += 1
            return
        self.requests += 1
        self.tokens_read += answer.n_read or 0
        self.tokens_written += answer.n_tokens or 0
        if answer.error is None:
            self.empty += columns.get("caption") == ""
        elif answer.is_refused:
            self.refused += 1
        else:
            self.failed += 1

    @classmethod
    def joined(cls, shards: Sequence[Self]) -> Self:
        """Return the metadata of several tables together."""
        _, *counts = zip(*map(astuple, shards), strict=True)
        return cls(shards[0].model, *map(sum, counts))


def write_rows(
    rows: Iterable[Row],
    schema: pa.Schema,
    captioner: CaptionerSection,
    output: str,
) -> None:
    """Write a table in pieces from a captioner's answers.

    UserError: no row has an answer, or more lack one than captioner.max_failed, without those that
    a server refuses.
    """
    metadata = AnswersMetadata(captioner.model)
    reason: str | None = None
    rows = iter(rows)
    with tables.writing(output, schema, metadata) as add:
        while piece := list(itertools.islice(rows, tables.CAPTION_ROWS)):
            for columns, answer in piece:
                metadata.count(columns, answer)
                reason = reason or columns["error"]
            add(pa.Table.from_pylist([columns for columns, _ in piece], schema))
        asked = metadata.requests
        missing = metadata.failed + metadata.empty
        allowed = captioner.max_failed
        if 0 < asked == missing + metadata.refused or missing > allowed * asked:
            raise UserError(
                f"{metadata.model} has no answer about {metadata.failed + metadata.refused} of "
                f"{asked} images or groups ({reason}) and an empty one about "
                f"{metadata.empty}; captioner.max_failed allows {allowed:.0%}. The others are "
                "cached: run again to ask for these, allow more of them, or try another prompt, "
                "captioner.model or scores.kind."
            )
    log.info("Asked %s.", metadata.in_words, extra=FOR_RUN)
