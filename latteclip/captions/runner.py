"""Ask an engine about the rows of a table, each request once."""

import contextlib
import itertools
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from latteclip.captions import answers, engine
from latteclip.captions.answers import AnswerCache
from latteclip.captions.engine import Response, failed, loads_model
from latteclip.captions.pictures import Layout, data_url, pictures_of, read_image
from latteclip.captions.questions import Questions, Request
from latteclip.config.keys import CaptionerSection
from latteclip.core.errors import UserError
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress, one_line
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
ATTEMPTS = 2
MAX_CONSECUTIVE_FAILURES = 50  # requests, before a run gives up
MAX_REFUSED = 5  # refused requests, before a run gives up that has no answer yet
CHUNK = 8  # requests that a worker prepares at a time
PREFETCHED_CHUNKS = 8  # chunks that are ready or wait, besides those in work


@dataclass(frozen=True)
class Job:
    """A captioner and where it works."""

    captioner: CaptionerSection
    threads: int
    store: str | None  # folder of the answer cache; None: for this run alone
    shard: str  # number and count, such as 2/4
    labeller: str = ""  # its answers have a file of their own in the cache
    scoring: bool = False  # whether a row gets scores in place of a caption

    @property
    def unit(self) -> str:
        return "scores" if self.scoring else "captions"

    @property
    def cache_name(self) -> str:
        """The file of the answer cache that this job alone writes."""
        suffix = f".{self.labeller}" if self.labeller else ""
        return f"{self.shard.replace('/', '-of-')}{suffix}"


@dataclass(frozen=True)
class Preparer:
    """Reads, identifies and decodes images ahead of the engine, in worker processes."""

    identity: str
    layout: Layout
    as_urls: bool  # encode pictures for a server
    cached: np.ndarray  # digests of requests whose answers are cached: bytes [A], sorted

    def __call__(self, request: Request) -> Request:
        """Give a request its digest, and its pictures unless its answer is cached."""
        contents = [read_image(path) for path in request.paths]
        digest = answers.digest(contents, request.prompt, self.identity, request.choices)
        place = np.searchsorted(self.cached, digest.encode())
        is_cached = digest.encode() in self.cached[place : place + 1]
        if is_cached or not request.is_asked:
            return replace(request, digest=digest)
        pictures: list[Any] = pictures_of(self.layout, request.paths, contents)
        if self.as_urls:
            pictures = [data_url(picture) for picture in pictures]
        return replace(request, digest=digest, pictures=pictures)


@contextlib.contextmanager
def running(job: Job, questions: Questions) -> Iterator["Runner"]:
    """Open the cache of the answers, which a signal leaves whole, and start worker processes."""
    captioner = job.captioner
    identity = answers.identity(captioner, questions.layout, scoring=job.scoring)
    saved = "Without --store, all is lost."
    if job.store:
        saved = f"The {job.unit} so far are cached in {job.store}: rerun to go on."
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_in_order(saved))
        folder = job.store or stack.enter_context(tempfile.TemporaryDirectory())
        cache = stack.enter_context(AnswerCache(folder, job.cache_name))
        as_urls = not loads_model(captioner)
        pool = Workers(
            Preparer(identity, questions.layout, as_urls, cache.digests()),
            job.threads,
            chunk=CHUNK,
            ahead=PREFETCHED_CHUNKS,
            name=lambda request: request.paths[0],
            threads_key="compute.threads",
        )
        runner = Runner(job, questions, cache, stack.enter_context(pool))
        yield runner
        runner.log_rates()


@dataclass
class Runner:
    """Asks an engine, once a request needs it, for the answers that the cache lacks."""

    job: Job
    questions: Questions
    cache: AnswerCache
    pool: Workers[Request, Request]

    def __post_init__(self) -> None:
        shape = (ATTEMPTS, len(self.questions))
        self._digests = np.zeros(shape, f"S{answers.DIGEST_LENGTH}")
        self._failed: dict[str, Response] = {}  # answers with an error, by digest
        self._under_way: set[str] = set()  # digests
        self._most_failures = MAX_CONSECUTIVE_FAILURES
        self._n_asked = self._failures = 0
        self._is_answered = False  # whether there is any answer, now or of an earlier run
        self._seconds = 0.0  # seconds of answering

    def ask(self, request_about: Callable[[int], Request]) -> None:
        """Answer a request about each row, unless its answer is cached.

        A request that fails is asked once more, but not one that a server refuses. Rows that a
        person answered get an answer only if it is cached.
        """
        order = self.questions.order
        self.ask_rows(order, request_about)
        if loads_model(self.job.captioner):  # it would fail again
            return
        allowed = math.floor(self.job.captioner.max_failed * len(order))
        self._most_failures = max(MAX_CONSECUTIVE_FAILURES, allowed + 1)
        self._failures = 0
        self.ask_rows([row for row in order if self._has_failed(row)], request_about)

    def _has_failed(self, row: int) -> bool:
        answer = self._failed.get(self._digests[0, row].decode())
        return answer is not None and not answer.is_refused

    def ask_rows(
        self, rows: Sequence[int], request_about: Callable[[int], Request], attempt: int = 1
    ) -> None:
        """Answer a request about each of these rows, in their order, unless it is cached."""
        answered = self.questions.answered
        asked = (replace(request_about(row), is_asked=row not in answered) for row in rows)
        progress = Progress(len(rows), self.job.unit)
        pending = self._pending(self.pool.in_order(asked), attempt, progress)
        first = next(pending, None)
        if first is None:
            return
        asked_engine = self._engine
        started = time.monotonic()
        progress.restart()
        for request, answer in asked_engine.answer(itertools.chain([first], pending)):
            self._take(request, answer, asked_engine.version)
            progress.add(1)
        self._seconds += time.monotonic() - started

    @cached_property
    def _engine(self) -> engine.Engine:
        started = time.monotonic()
        job = self.job
        found = engine.start(job.captioner, job.threads, scoring=job.scoring)
        log.info("%s started in %.0f s.", found.version, time.monotonic() - started)
        return found

    def _pending(
        self, prepared: Iterable[Request], attempt: int, progress: Progress
    ) -> Iterator[Request]:
        """Yield requests that are neither cached nor under way for an equal row."""
        for request in prepared:
            digest = request.digest
            is_cached = self.cache.get(digest) is not None
            self._is_answered |= is_cached
            is_known = is_cached or digest in self._under_way
            if is_known or request.is_asked:
                self._digests[attempt - 1, request.key] = digest
            if is_known or not request.is_asked:
                progress.skip(1)
                continue
            self._under_way.add(digest)
            yield request

    def _take(self, request: Request, answer: Response, version: str) -> None:
        """Cache an answer, or note why it is invalid: the only write path, for all engines."""
        digest = request.digest
        self._under_way.discard(digest)
        self._n_asked += 1
        error = answer.error
        if error is None and (fault := answers.problem(answer)):
            error = f"the answer is invalid: {fault}"
        if error is None:
            self._failed.pop(digest, None)
            self.cache.add(digest, answer, version)
            if not loads_model(self.job.captioner):  # the answer of a server may be paid
                self.cache.commit()
            self._is_answered = True
            self._failures = 0
            return
        answer = failed(one_line(error), is_refused=answer.is_refused)
        self._failed[digest] = replace(answer, digest=digest)
        if not (answer.is_refused and self._is_answered):
            self._failures += 1
            self._give_up_after(answer)

    def _give_up_after(self, answer: Response) -> None:
        """Raise UserError where further requests would fail as well."""
        reason = str(answer.error).rstrip(".")
        if answer.is_refused and self._failures >= MAX_REFUSED:
            raise UserError(
                f"The server of captioner.engine {self.job.captioner.engine} refuses each request "
                f"({reason}); check captioner.model, and whether it reads pictures and answers "
                "such questions."
            )
        if self._failures >= self._most_failures:
            raise UserError(
                f"{self._failures} requests failed one after another, the last with: {reason}. The "
                "answers before them are cached: run again to ask for the rest."
            )

    def answers(self, row: int) -> list[Response]:
        """Return the answers about a row, one of each attempt, or why there is none.

        There are none about a row that was not asked about.
        """
        digests = [digest.decode() for digest in self._digests[:, row] if digest]
        found = [answer for digest in digests if (answer := self.cache.get(digest))]
        return found or [self._failed[digest] for digest in digests[:1]]

    def log_rates(self) -> None:
        log.info(
            "Asked %d requests about %d rows in %.1f s: %.1f %s/s.",
            self._n_asked,
            len(self.questions.order),
            self._seconds,
            self._n_asked / max(self._seconds, 1e-9),
            self.job.unit,
        )
