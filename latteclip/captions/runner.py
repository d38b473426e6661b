"""Asking an engine about every row of a table, each request once, and writing the table.

Letters: R rows of a table (images or groups).
"""

import contextlib
import functools
import itertools
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
from PIL import Image

from latteclip.captions import requests
from latteclip.captions.answer_cache import (
    MAX_CHARACTERS,
    Answer,
    AnswerCache,
    max_characters,
    problem,
)
from latteclip.captions.engines import base as engines
from latteclip.captions.engines import processors
from latteclip.captions.engines.base import CaptionerSettings, Engine
from latteclip.captions.pictures import data_url, pictures_of, read_image
from latteclip.captions.requests import ALL_ROWS, Choices, Identity, Questions, Request, Shard
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress, one_line
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
MAX_CONSECUTIVE_FAILURES = 50  # requests, before a run gives up
CHUNKS = 8, 64  # requests that a worker prepares at a time: at least, at most
PIXELS = 8 * 1344**2  # and no more of them than show so many pixels
PREFETCHED_CHUNKS = 8  # that are ready or wait for a worker, besides those in work


@dataclass(frozen=True)
class CaptionJob:
    """How a table of captions, or of class scores, is made."""

    settings: CaptionerSettings
    output: str
    store: str | None  # folder of the answer cache; None: for this run alone
    threads: int
    shard: Shard = ALL_ROWS

    @contextlib.contextmanager
    def cache(self, unit: str) -> Iterator[AnswerCache]:
        """Open the cache of the answers, which a signal leaves whole.

        Args:
            unit: what a row gets, in the plural.
        """
        saved = f"The {unit} so far are cached in {self.store}: rerun to go on."
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                ending_in_order(saved if self.store else "Without --store, all is lost.")
            )
            folder = self.store or stack.enter_context(tempfile.TemporaryDirectory())
            yield stack.enter_context(AnswerCache(folder, self.shard.name))


# --- worker processes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A request before its images are read."""

    key: int
    paths: Sequence[str]
    prompt: str  # of this attempt
    choices: Choices | None = None  # as of the request


@dataclass(frozen=True)
class Prepared:
    """A request whose images are read; without pictures where its answer is cached."""

    task: Task
    image_digests: bytes
    pictures: Sequence[Image.Image | str] | None


@dataclass(frozen=True)
class Preparer:
    """Reads, identifies and decodes images ahead of the engine, in worker processes."""

    identity: Identity
    as_urls: bool  # encode pictures for a server
    cached: Container[str]  # digests of requests whose answers are cached

    def __call__(self, task: Task) -> Prepared:
        """Read the images of a task, and decode them unless its answer is cached."""
        contents = [read_image(path) for path in task.paths]
        images = requests.digest_of_images(contents)
        digest = requests.digest(images, len(contents), task.prompt, self.identity, task.choices)
        if digest in self.cached:
            return Prepared(task, images, None)
        pictures = pictures_of(self.identity.layout, task.paths, contents)
        return Prepared(task, images, [*map(data_url, pictures)] if self.as_urls else pictures)


def workers(preparer: Preparer, n: int, max_pixels: int) -> Workers[Task, Prepared]:
    """Return processes that prepare tasks in order.

    Args:
        preparer: what they do with a task.
        n: how many processes.
        max_pixels: of a request. The fewer, the more requests go to a worker at a time, as each
            time costs this process as much as a small picture does.
    """
    least, most = CHUNKS
    return Workers(
        preparer,
        n,
        chunk=max(least, min(most, PIXELS // max_pixels)),
        ahead=PREFETCHED_CHUNKS,
        name=lambda task: task.paths[0],
        threads_key="threads.caption",
    )


# --- asking --------------------------------------------------------------------------------------


class Runner:
    """Asks an engine for the answers that the cache lacks; a context manager.

    In each attempt a row has one question.
    """

    def __init__(
        self,
        job: CaptionJob,
        questions: Questions,
        cache: AnswerCache,
        question: Callable[[int, int], tuple[str, Choices | None]],
        *,
        unit: str,
        scoring: bool = False,
    ) -> None:
        """Start no engine yet; the first request that needs one does.

        Args:
            job: settings and threads.
            questions: the R rows.
            cache: of the answers.
            question: the prompt about a row in an attempt, and the choices that go with it.
            unit: what a row gets, in the plural.
            scoring: scores are wanted, not captions.
        """
        self.questions, self.cache, self.question = questions, cache, question
        self.settings, self.threads = job.settings, job.threads
        self.unit, self.scoring = unit, scoring
        self.identity = _identity(job.settings, questions, scoring)
        tokens = self.settings.max_new_tokens
        self.max_characters = MAX_CHARACTERS if scoring else max_characters(tokens)
        self.image_digests = np.zeros((len(questions), 32), np.uint8)  # read as bytes
        self.errors: dict[str, str] = {}  # by the digest of the request
        self._engine: Engine | None = None
        as_urls = not engines.loads_model(self.settings.engine)
        preparer = Preparer(self.identity, as_urls, cache.snapshot())
        self._pool = workers(preparer, job.threads, questions.max_pixels)
        self._asked: dict[int, str] = {}  # rows whose requests are under way, with their digests
        self._under_way: set[str] = set()  # these digests
        self.n_rows = self.n_asked = self.n_tokens = self.n_read = self._failures = 0
        self._seconds = 0.0  # of answering

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: Any) -> None:
        self._pool.__exit__(kind, *more)
        if kind is not None:
            return
        seconds = max(self._seconds, 1e-9)
        log.info(
            "Asked %d requests about %d rows in %.1f s: %.1f %s/s, %.0f tokens/s; "
            "a request has %.0f tokens.",
            self.n_asked,
            self.n_rows,
            self._seconds,
            self.n_asked / seconds,
            self.unit,
            self.n_tokens / seconds,
            self.n_read / max(1, self.n_asked),
        )

    def ask(self, rows: Sequence[int], attempt: int = 1) -> None:
        """Ask about rows whose answers are not cached.

        Raises:
            UserError: the engine does not start, or nothing but failures for
                MAX_CONSECUTIVE_FAILURES requests.
        """
        self.n_rows = max(self.n_rows, len(rows))
        progress = Progress(len(rows), self.unit)
        tasks = (
            Task(row, self.questions.paths_of(row), *self.question(row, attempt)) for row in rows
        )
        pending = self._pending(self._pool.in_order(tasks), attempt, progress)
        first = next(pending, None)
        if first is None:
            return
        engine = self._started()
        answered = engine.score if self.scoring else engine.generate
        started, tokens_before = time.monotonic(), self.n_tokens
        progress.restart()
        for request, answer in answered(itertools.chain([first], pending), self._pool.are_behind):
            self._take(request, answer, engine.version)
            rate = (self.n_tokens - tokens_before) / (time.monotonic() - started)
            progress.add(1, f"{rate:.0f} tokens/s")
        self._seconds += time.monotonic() - started

    def digest(self, row: int, attempt: int = 1) -> str:
        """Return the digest of the request about a row, whose images have been read."""
        images = self.image_digests[row].tobytes()
        prompt, choices = self.question(row, attempt)
        return requests.digest(images, self.questions.n_images, prompt, self.identity, choices)

    def answer(self, row: int, attempt: int = 1) -> Answer | None:
        """Return the answer to the request about a row, if there is one."""
        return self.cache.get(self.digest(row, attempt))

    def error(self, row: int) -> str:
        """Return why there is no answer about a row."""
        return self.errors.get(self.digest(row), "not answered")

    def _started(self) -> Engine:
        if self._engine is None:
            started = time.monotonic()
            n = self.questions.n_pictures
            self._engine = engines.start(self.settings, self.threads, n, scoring=self.scoring)
            seconds = time.monotonic() - started
            log.info("%s started in %.0f s.", self._engine.version, seconds)
        return self._engine

    def _pending(
        self, prepared: Iterable[Prepared], attempt: int, progress: Progress
    ) -> Iterator[Request]:
        """Yield requests that are neither cached nor under way for an equal row."""
        for item in prepared:
            row = item.task.key
            self.image_digests[row] = np.frombuffer(item.image_digests, np.uint8)
            digest = self.digest(row, attempt)
            if item.pictures is None or digest in self._under_way or digest in self.cache:
                progress.skip(1)
                continue
            self._asked[row] = digest
            self._under_way.add(digest)
            yield Request(row, item.pictures, item.task.prompt, item.task.choices)

    def _take(self, request: Request, answer: Answer, engine: str) -> None:
        """Cache an answer, or note why it is invalid: the only write path, for all engines."""
        digest = self._asked.pop(request.key)
        self._under_way.discard(digest)
        self.n_asked += 1
        error = answer.error
        if error is None and (found := problem(answer, self.max_characters)):
            error = f"the answer is invalid: {found}"
        if error is None:
            self.cache.add(digest, answer, engine)
            self._failures = 0
            self.n_tokens += answer.n_tokens or 0
            self.n_read += answer.n_read or 0
            return
        self._failures += 1
        self.errors[digest] = error = one_line(error)
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise UserError(
                f"{self._failures} requests failed one after another, the last with: "
                f"{error.rstrip('.')}. The answers before them are cached."
            )


def _identity(settings: CaptionerSettings, questions: Questions, scoring: bool) -> Identity:
    """Return what the answers to equal questions depend on."""
    loads_model = engines.loads_model(settings.engine)
    return Identity(
        model=requests.fingerprint(settings.model),
        revision=settings.revision,
        dtype=settings.dtype,
        quantization=settings.quantization,
        # With scores no text is written, so its length decides nothing.
        max_new_tokens=0 if scoring else settings.max_new_tokens,
        layout=questions.layout,
        special_tokens=processors.special_tokens(settings.model, settings.revision)
        if loads_model
        else None,  # a server has its rule
    )


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a row, besides the columns of its kind of table."""

    error: str | None = None  # why there is no answer, though one was wanted
    digest: str | None = None  # of the request; None where nothing was asked
    engine: str = ""  # who answered; empty where nobody did
    date: str | None = None  # when
    n_read: int = 0  # tokens of requests and of answers, whenever they were asked for
    n_written: int = 0

    @property
    def states(self) -> tuple[str, ...]:
        """Return what is counted of the row, for the log and the check."""
        return ("failed",) if self.error is not None else ()


def tokens_of(*answers: Answer) -> tuple[int, int]:
    """Return how many tokens answers read and wrote; unknown numbers count as 0."""
    return sum(a.n_read or 0 for a in answers), sum(a.n_tokens or 0 for a in answers)


@dataclass
class Tally:
    """What the R outcomes of a table have in common."""

    count: Counter[str] = field(default_factory=Counter)  # of `Outcome.states`
    engines: set[str] = field(default_factory=set)
    last_date: str = ""
    first_error: str = ""
    read: int = 0  # tokens
    written: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one of them."""
        self.count.update(outcome.states)
        self.engines.add(outcome.engine)
        self.last_date = max(self.last_date, outcome.date or "")
        self.first_error = self.first_error or outcome.error or ""
        self.read += outcome.n_read
        self.written += outcome.n_written

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the part of the table's metadata that the outcomes decide."""
        return {
            "engine": ", ".join(sorted(self.engines - {""})),
            "date": self.last_date or None,
            "tokens_read": self.read,
            "tokens_written": self.written,
        }


def write_table(
    job: CaptionJob,
    schema: pa.Schema,
    n: int,
    outcomes: Callable[[int], Outcome],
    columns: Callable[[int], Mapping[str, Any]],
    check: Callable[[Tally], None],
    metadata: Mapping[str, Any],
) -> Tally:
    """Write a table of R rows in pieces; hold the outcomes of one piece, and ask again for others.

    Args:
        job: settings and output.
        schema: CAPTIONS or CLASS_SCORES.
        n: R.
        outcomes: what became of a row; its attributes are columns.
        columns: the other columns of a row.
        check: raises UserError where too many rows have no answer.
        metadata: how the table was made, besides the captioner.
    """
    outcomes = functools.lru_cache(tables.CAPTION_ROWS)(outcomes)
    tally = Tally()
    for row in range(n):
        tally.add(outcomes(row))
    check(tally)
    metadata = {**metadata, "captioner": asdict(job.settings), **tally.metadata}
    with tables.writing(job.output, schema, metadata) as add:
        for start in range(0, max(1, n), tables.CAPTION_ROWS):
            rows = range(start, min(start + tables.CAPTION_ROWS, n))
            add(tables.as_columns([{**vars(outcomes(r)), **columns(r)} for r in rows], schema))
    return tally
