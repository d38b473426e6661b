"""Answers to requests: cached in SQLite beyond the run that asked, and as rows of a table."""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import logging
import operator
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latteclip.captions.engine import Response, loads_model
from latteclip.captions.pictures import Layout
from latteclip.captions.questions import Choices
from latteclip.config.keys import CaptionerSection, GroupsSection
from latteclip.core import files, tables
from latteclip.core.errors import UserError
from latteclip.core.files import sqlite_uri
from latteclip.core.terminal import FOR_RUN

log = logging.getLogger(__name__)
# Columns of a row, and the answers that they come from; none where nothing was asked.
Row = tuple[dict[str, Any], Sequence[Response]]
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


def identity(captioner: CaptionerSection, layout: Layout, *, scoring: bool) -> str:
    """Return everything that decides an answer, besides the images and the question, as JSON."""
    decides = {
        "model": fingerprint(captioner),
        "revision": captioner.revision,
        "dtype": captioner.dtype,
        "quantization": captioner.quantization,
        # With scores no text is written, so its length decides nothing.
        "max_new_tokens": 0 if scoring else captioner.max_new_tokens,
        "layout": asdict(layout),
    }
    return json.dumps(decides, sort_keys=True)


def digest(
    contents: Sequence[bytes], prompt: str, identity: str, choices: Choices | None = None
) -> str:
    """Return DIGEST_LENGTH hexadecimal digits for a request about image files of these bytes."""
    images = [hashlib.sha256(content).digest() for content in contents]
    shared = _shared(prompt, identity, choices)
    return files.digest(b"".join(images), shared)[:DIGEST_LENGTH]


@functools.lru_cache(maxsize=4096)
def _shared(prompt: str, identity: str, choices: Choices | None) -> bytes:
    wanted = None if choices is None else asdict(choices)
    return json.dumps([prompt, json.loads(identity), wanted], sort_keys=True).encode()


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


# --- tables of answers ---------------------------------------------------------------------------


@dataclass(kw_only=True)
class AnswersMetadata:
    """Who answered, and what that took."""

    schema: ClassVar[pa.Schema]
    unit: ClassVar[str]
    model: str | None = None  # None: the user's file
    revision: str | None = None
    file: str | None = None  # None: a model
    engine: str = ""  # names and versions, separated by commas
    date: str | None = None  # date of the last answer
    tokens_read: int = 0
    tokens_written: int = 0
    requests: int = 0
    # Rows, which are images or groups.
    asked: int = 0
    not_asked: int = 0  # those that `max_images` leaves out
    failed: int = 0
    refused: int = 0  # those about which a server refuses to answer
    empty: int = 0  # those with an empty caption

    @property
    def in_words(self) -> str:
        """What was asked, in words."""
        tokens = f"{self.tokens_read:,} tokens read, {self.tokens_written:,} written"
        left = f", {self.not_asked:,} images left out" if self.not_asked else ""
        refused = f", {self.refused:,} refused" if self.refused else ""
        return f"{self.requests:,} requests to {self.model}, {tokens}{refused}{left}"

    def count(self, columns: Mapping[str, Any], answers: Sequence[Response]) -> None:
        """Count a row and its answers; without answers it was not asked about."""
        if not answers:
            self.not_asked += 1
            return
        self.asked += 1
        if any(answer.is_refused for answer in answers):
            self.refused += 1
        elif columns["error"] is not None:
            self.failed += 1
        elif columns.get("caption") == "":
            self.empty += 1
        for answer in answers:
            self.requests += answer.digest is not None
            self.tokens_read += answer.n_read or 0
            self.tokens_written += answer.n_tokens or 0

    @classmethod
    def joined(cls, shards: Sequence[Self]) -> Self:
        """Return the metadata of several tables together."""
        engines = {name for shard in shards for name in shard.engine.split(", ") if name}
        return replace(
            shards[0],
            engine=", ".join(sorted(engines)),
            date=max(shard.date or "" for shard in shards) or None,
            **{name: sum(getattr(shard, name) for shard in shards) for name in COUNTS},
        )


# The fields of AnswersMetadata that are numbers.
COUNTS = tuple(field.name for field in fields(AnswersMetadata) if field.default == 0)


@dataclass(kw_only=True)
class CaptionsMetadata(AnswersMetadata):
    """The metadata of CAPTIONS."""

    schema = tables.CAPTIONS
    unit = "captions"
    prompt: str
    layout: Layout  # layout of an image
    groups: GroupsSection | None = None  # None: the captions are of images


@dataclass(kw_only=True)
class ScoresMetadata(AnswersMetadata):
    """The metadata of CLASS_SCORES."""

    schema = tables.CLASS_SCORES
    unit = "scores"
    classnames: list[str]
    kind: str  # value of scores.kind
    prompt: str
    answer: str | None  # template of the answers whose likelihood is asked for


def read_metadata(path: str | Path) -> AnswersMetadata:
    """Read what a table with a captioner's answers says of them."""
    has_scores = "options" in pq.read_schema(path).names
    record: type[AnswersMetadata] = ScoresMetadata if has_scores else CaptionsMetadata
    return tables.read_metadata(path, record)


def write_rows(
    rows: Iterable[Row],
    metadata: AnswersMetadata,
    captioner: CaptionerSection,
    output: str,
    file: str | None = None,
) -> None:
    """Write a table in pieces, from a captioner's answers or the user's file.

    The metadata get who answered, the date and the tokens of the answers. UserError: no row has an
    answer, or more lack one than captioner.max_failed, without those that a server refuses.
    """
    reason: str | None = None
    engines, dates = {""}, {""}
    rows = iter(rows)
    with tables.writing(output, metadata.schema, metadata) as add:
        while piece := list(itertools.islice(rows, tables.CAPTION_ROWS)):
            for columns, answers in piece:
                metadata.count(columns, answers)
                reason = reason or columns["error"]
                engines |= {answer.engine for answer in answers}
                dates |= {answer.date for answer in answers}
            add(pa.Table.from_pylist([columns for columns, _ in piece], metadata.schema))
        metadata.file = file
        if file is None:
            metadata.model, metadata.revision = captioner.model, captioner.revision
        metadata.engine = ", ".join(sorted(engines - {""}))
        metadata.date = max(dates) or None
        _refuse_too_few(metadata, captioner.max_failed, reason)
    log.info(
        "Wrote %s for %d images or groups: %d failed, %d refused, %d empty.",
        metadata.unit,
        *(metadata.asked, metadata.failed, metadata.refused, metadata.empty),
    )
    if file is None:
        log.info("Asked %s.", metadata.in_words, extra=FOR_RUN)


def _refuse_too_few(metadata: AnswersMetadata, allowed: float, reason: str | None) -> None:
    """Raise UserError where there is no answer, or more are missing than the user allows."""
    missing = metadata.failed + metadata.empty
    are_all = 0 < metadata.asked == missing + metadata.refused
    if metadata.file is not None and are_all:
        raise UserError(
            f"{metadata.file} has no {metadata.unit} for any of the {missing} images or groups."
        )
    if metadata.file is None and (are_all or missing > allowed * metadata.asked):
        raise UserError(
            f"{metadata.model} has no {metadata.unit} for {metadata.failed + metadata.refused} of "
            f"{metadata.asked} images or groups ({reason}) and empty ones for {metadata.empty}, "
            f"more than captioner.max_failed ({allowed:.0%}). The others are cached: run again to "
            "ask for these, allow more of them, or try another prompt, captioner.model or "
            "scores.kind."
        )
