"""Asking an engine about every row of a table, each request once, and writing the table."""

import contextlib
import itertools
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from latteclip.captions import requests
from latteclip.captions.answer_cache import MAX_CHARACTERS, AnswerCache, problem
from latteclip.captions.engines import base as engines
from latteclip.captions.engines.base import FILE, CaptionerSettings, Engine
from latteclip.captions.pictures import Layout, data_url, pictures_of, read_image
from latteclip.captions.requests import Answer, Choices, Identity, Questions, Request, failed
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress, one_line
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
ATTEMPTS = 2
MAX_CONSECUTIVE_FAILURES = 50  # requests, before a run gives up
CHARACTERS_PER_TOKEN = 256  # more than any token of the known vocabularies has
CHUNKS = 8, 64  # requests that a worker prepares at a time: at least, at most
PIXELS = 8 * 1344**2  # and no more of them than show so many pixels
PREFETCHED_CHUNKS = 8  # that are ready or wait for a worker, besides those in work
Question = Callable[[int, int], tuple[str, Choices | None]]  # about a row in an attempt
Row = tuple[dict[str, Any], Sequence[Answer]]  # columns, and the answers that they come from


@dataclass(frozen=True)
class CaptionJob:
    """How a table of captions, or of class scores, is made."""

    settings: CaptionerSettings
    output: str
    store: str | None  # folder of the answer cache; None: for this run alone
    threads: int
    shard: str  # as 2/4
    scoring: bool = False  # whether a row gets scores in place of a caption

    @property
    def unit(self) -> str:
        return "scores" if self.scoring else "captions"


# --- worker processes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparer:
    """Reads, identifies and decodes images ahead of the engine, in worker processes."""

    identity: Identity
    as_urls: bool  # encode pictures for a server
    cached: Container[str]  # digests of requests whose answers are cached

    def __call__(self, request: Request) -> Request:
        """Give a request its digest, and its pictures unless its answer is cached."""
        contents = [read_image(path) for path in request.paths]
        digest = requests.digest(contents, request.prompt, self.identity, request.choices)
        if digest in self.cached:
            return replace(request, digest=digest)
        pictures: list[Any] = pictures_of(self.identity.layout, request.paths, contents)
        if self.as_urls:
            pictures = [*map(data_url, pictures)]
        return replace(request, digest=digest, pictures=pictures)


def workers(preparer: Preparer, n: int, max_pixels: int) -> Workers[Request, Request]:
    """Return n processes that prepare requests in order.

    The fewer pixels a request has, the more requests go to a worker at a time. Each time costs this
    process as much as a small picture does.
    """
    least, most = CHUNKS
    return Workers(
        preparer,
        n,
        chunk=max(least, min(most, PIXELS // max_pixels)),
        ahead=PREFETCHED_CHUNKS,
        name=lambda request: request.paths[0],
        threads_key="threads.caption",
    )


# --- asking --------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(job: CaptionJob, questions: Questions, question: Question) -> Iterator["Runner"]:
    """Open the cache of the answers, which a signal leaves whole, and start worker processes."""
    saved = "Without --store, all is lost."
    if job.store:
        saved = f"The {job.unit} so far are cached in {job.store}: rerun to go on."
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_in_order(saved))
        folder = job.store or stack.enter_context(tempfile.TemporaryDirectory())
        cache = stack.enter_context(AnswerCache(folder, job.shard.replace("/", "-of-")))
        as_urls = not engines.loads_model(job.settings.engine)
        preparer = Preparer(_identity(job, questions.layout), as_urls, cache.snapshot())
        max_pixels = questions.max_pixels * questions.n_pictures
        pool = stack.enter_context(workers(preparer, job.threads, max_pixels))
        runner = Runner(job, questions, question, cache, pool)
        yield runner
        runner.log_rates()


class Runner:
    """Asks an engine for the answers that the cache lacks. In each attempt a row has one question.

    No engine starts before the first request that needs it.
    """

    def __init__(
        self,
        job: CaptionJob,
        questions: Questions,
        question: Question,
        cache: AnswerCache,
        pool: Workers[Request, Request],
    ) -> None:
        self.job, self.questions, self.question = job, questions, question
        self.cache, self._pool = cache, pool
        tokens = MAX_CHARACTERS if job.scoring else job.settings.max_new_tokens
        self.max_characters = min(tokens * CHARACTERS_PER_TOKEN, MAX_CHARACTERS)
        shape, digest_type = (ATTEMPTS, len(questions)), f"S{requests.DIGEST_LENGTH}"
        self.digests = np.zeros(shape, digest_type)  # of requests
        self.errors: dict[str, str] = {}  # by the digest of the request
        self._engine: Engine | None = None
        self._under_way: set[str] = set()  # digests
        self.n_rows = self.n_asked = self.n_tokens = self.n_read = self._failures = 0
        self._seconds = 0.0  # of answering

    def ask(self, rows: Sequence[int], attempt: int = 1) -> None:
        """Ask about rows whose answers are not cached.

        Raises:
            UserError: the engine does not start, or nothing but failures for
                MAX_CONSECUTIVE_FAILURES requests.
        """
        self.n_rows = max(self.n_rows, len(rows))
        progress = Progress(len(rows), self.job.unit)
        asked = (self._request(row, attempt) for row in rows)
        pending = self._pending(self._pool.in_order(asked), attempt, progress)
        first = next(pending, None)
        if first is None:
            return
        engine = self._started()
        answered = engine.score if self.job.scoring else engine.generate
        started, tokens_before = time.monotonic(), self.n_tokens
        progress.restart()
        for request, answer in answered(itertools.chain([first], pending), self._pool.are_behind):
            self._take(request, answer, engine.version)
            rate = (self.n_tokens - tokens_before) / (time.monotonic() - started)
            progress.add(1, f"{rate:.0f} tokens/s")
        self._seconds += time.monotonic() - started

    def _request(self, row: int, attempt: int) -> Request:
        prompt, choices = self.question(row, attempt)
        return Request(row, (), prompt, choices, self.questions.paths_of(row))

    def answers(self, row: int) -> list[Answer]:
        """Return the answers about a row, one of each attempt, or why there is none."""
        digests = [digest.decode() for digest in self.digests[:, row] if digest]
        found = [answer for digest in digests if (answer := self.cache.get(digest))]
        error = self.errors.get(digests[0], "not answered")
        return found or [replace(failed(error), digest=digests[0])]

    def log_rates(self) -> None:
        seconds = max(self._seconds, 1e-9)
        log.info(
            "Asked %d requests about %d rows in %.1f s: %.1f %s/s, %.0f tokens/s; "
            "a request has %.0f tokens.",
            self.n_asked,
            self.n_rows,
            self._seconds,
            self.n_asked / seconds,
            self.job.unit,
            self.n_tokens / seconds,
            self.n_read / max(1, self.n_asked),
        )

    def _started(self) -> Engine:
        if self._engine is None:
            started, job = time.monotonic(), self.job
            n = self.questions.n_pictures
            self._engine = engines.start(job.settings, job.threads, n, scoring=job.scoring)
            seconds = time.monotonic() - started
            log.info("%s started in %.0f s.", self._engine.version, seconds)
        return self._engine

    def _pending(
        self, prepared: Iterable[Request], attempt: int, progress: Progress
    ) -> Iterator[Request]:
        """Yield requests that are neither cached nor under way for an equal row."""
        for request in prepared:
            digest = request.digest
            self.digests[attempt - 1, request.key] = digest
            if not request.pictures or digest in self._under_way or digest in self.cache:
                progress.skip(1)
                continue
            self._under_way.add(digest)
            yield request

    def _take(self, request: Request, answer: Answer, engine: str) -> None:
        """Cache an answer, or note why it is invalid: the only write path, for all engines."""
        self._under_way.discard(request.digest)
        self.n_asked += 1
        error = answer.error
        if error is None and (found := problem(answer, self.max_characters)):
            error = f"the answer is invalid: {found}"
        if error is None:
            self.cache.add(request.digest, answer, engine)
            self._failures = 0
            self.n_tokens += answer.n_tokens or 0
            self.n_read += answer.n_read or 0
            return
        self._failures += 1
        self.errors[request.digest] = error = one_line(error)
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise UserError(
                f"{self._failures} requests failed one after another, the last with: "
                f"{error.rstrip('.')}. The answers before them are cached."
            )


def _identity(job: CaptionJob, layout: Layout) -> Identity:
    """Return what the answers to equal questions depend on."""
    settings, model, revision = job.settings, job.settings.model, job.settings.revision
    loads_model = engines.loads_model(settings.engine)  # a server has its rule
    return Identity(
        model=requests.fingerprint(model),
        revision=revision,
        dtype=settings.dtype,
        quantization=settings.quantization,
        # With scores no text is written, so its length decides nothing.
        max_new_tokens=0 if job.scoring else settings.max_new_tokens,
        layout=layout,
        special_tokens=requests.special_tokens(model, revision) if loads_model else None,
    )


# --- tables --------------------------------------------------------------------------------------


def write_table(
    job: CaptionJob,
    schema: pa.Schema,
    n: int,
    row_of: Callable[[int], Row],
    file_key: str,
    metadata: Mapping[str, Any],
) -> Counter[str]:
    """Write a table of n rows in pieces, and return how many of them were asked, failed and so on.

    `row_of` returns the columns of a row and its answers, none where nothing was asked. `file_key`
    is the key of the configuration that names the user's file.

    Raises:
        UserError: more rows than captioner.max_failed have no answer.
    """
    count, first_error, engine_names, dates = Counter[str](), "", {""}, {""}
    metadata = {**metadata, "captioner": asdict(job.settings)}
    with tables.writing(job.output, schema, metadata) as add:
        for start in range(0, max(1, n), tables.CAPTION_ROWS):
            rows = []
            for row in range(start, min(start + tables.CAPTION_ROWS, n)):
                columns, answers = row_of(row)
                rows.append(columns)
                count.update(_count(columns, answers))
                first_error = first_error or columns["error"] or ""
                engine_names |= {answer.engine for answer in answers}
                dates |= {answer.date for answer in answers}
            add(pa.Table.from_pylist(rows, schema))
        if count["failed"] + count["empty"] > job.settings.max_failed * count["asked"]:
            raise _too_many(job, count, first_error, file_key)
        metadata |= {
            "engine": ", ".join(sorted(engine_names - {""})),
            "date": max(dates) or None,
            "tokens_read": count["read"],
            "tokens_written": count["written"],
        }
    return count


def _count(columns: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, int]:
    is_failed = columns["error"] is not None
    return {
        "asked": int(bool(answers)),
        "failed": int(is_failed),
        "empty": int(not is_failed and columns.get("caption") == ""),
        "cut": int(columns.get("finish_reason") == "length"),
        "read": sum(answer.n_read or 0 for answer in answers),
        "written": sum(answer.n_tokens or 0 for answer in answers),
    }


def _too_many(job: CaptionJob, count: Counter[str], error: str, file_key: str) -> UserError:
    settings, first = job.settings, f" (the first error: {error})" if error else ""
    what = (
        f"has no {job.unit} for {count['failed']} of {count['asked']} images or groups{first} and "
        f"empty ones for {count['empty']}, more than captioner.max_failed "
        f"({settings.max_failed:.0%})"
    )
    if settings.engine == FILE:
        return UserError(f"Your file {what}; add them: see {file_key}.")
    return UserError(
        f"{settings.model} {what}; try another prompt, captioner.model or scores.kind, or rerun: "
        "only the requests without an answer are repeated."
    )
