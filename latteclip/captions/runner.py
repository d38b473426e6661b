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
from latteclip.captions.answers import AnswerCache, Identity
from latteclip.captions.engine import CaptionerSettings, Response, failed
from latteclip.captions.pictures import data_url, pictures_of, read_image
from latteclip.captions.questions import Questions, Request
from latteclip.core.errors import UserError
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress, one_line
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
ATTEMPTS = 2
MAX_CONSECUTIVE_FAILURES = 50  # requests, before a run gives up
# The same of requests that the server refuses, where it has answered none of this table yet.
MAX_REFUSED = 5
CHUNK = 8  # requests that a worker prepares at a time
PREFETCHED_CHUNKS = 8  # chunks that are ready or wait, besides those in work


@dataclass(frozen=True)
class CaptionJob:
    """How a table of captions, or of class scores, is made."""

    settings: CaptionerSettings
    output: str
    store: str | None  # folder of the answer cache; None: for this run alone
    threads: int
    shard: str  # number and count, such as 2/4
    file_key: str  # key of the configuration that names the user's file
    file: str | None  # the user's file
    labeller: str = ""  # its answers have a file of their own in the cache
    scoring: bool = False  # whether a row gets scores in place of a caption

    @property
    def unit(self) -> str:
        return "scores" if self.scoring else "captions"

    @property
    def cache_name(self) -> str:
        """The file of the answer cache that this job alone writes."""
        own = f".{self.labeller}" if self.labeller else ""
        return f"{self.shard.replace('/', '-of-')}{own}"


@dataclass(frozen=True)
class Preparer:
    """Reads, identifies and decodes images ahead of the engine, in worker processes."""

    identity: Identity
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
        pictures: list[Any] = pictures_of(self.identity.layout, request.paths, contents)
        if self.as_urls:
            pictures = [data_url(picture) for picture in pictures]
        return replace(request, digest=digest, pictures=pictures)


@contextlib.contextmanager
def running(job: CaptionJob, questions: Questions) -> Iterator["Runner"]:
    """Open the cache of the answers, which a signal leaves whole, and start worker processes."""
    settings = job.settings
    identity = Identity(
        model=answers.fingerprint(settings),
        revision=settings.revision,
        dtype=settings.dtype,
        quantization=settings.quantization,
        # With scores no text is written, so its length decides nothing.
        max_new_tokens=0 if job.scoring else settings.max_new_tokens,
        layout=questions.layout,
    )
    saved = "Without --store, all is lost."
    if job.store:
        saved = f"The {job.unit} so far are cached in {job.store}: rerun to go on."
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_in_order(saved))
        folder = job.store or stack.enter_context(tempfile.TemporaryDirectory())
        cache = stack.enter_context(AnswerCache(folder, job.cache_name))
        pool = Workers(
            Preparer(identity, not settings.loads_model, cache.digests()),
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

    job: CaptionJob
    questions: Questions
    cache: AnswerCache
    pool: Workers[Request, Request]

    def __post_init__(self) -> None:
        self._digests = np.zeros(
            (ATTEMPTS, len(self.questions)), f"S{answers.DIGEST_LENGTH}"
        )
        self._errors: dict[str, str] = {}  # the keys are digests of requests
        self._under_way: set[str] = set()  # digests
        self._n_rows = self._n_asked = self._n_tokens = self._failures = 0
        self._is_answered = False  # whether there is any answer, now or of an earlier run
        self._seconds = 0.0  # seconds of answering

    def ask(
        self, rows: Sequence[int], request_about: Callable[[int], Request], attempt: int = 1
    ) -> None:
        """Answer a request about each row, in their order, unless its answer is cached.

        Rows that a person answered get an answer only if it is cached.
        """
        self._n_rows = max(self._n_rows, len(rows))
        answered = self.questions.answered
        asked = (replace(request_about(row), is_asked=row not in answered) for row in rows)
        progress = Progress(len(rows), self.job.unit)
        pending = self._pending(self.pool.in_order(asked), attempt, progress)
        first = next(pending, None)
        if first is None:
            return
        asked_engine = self._engine
        pending = itertools.chain([first], pending)
        started = time.monotonic()
        progress.restart()
        for request, answer in asked_engine.answer(pending, self.pool.are_behind):
            self._take(request, answer, asked_engine.version)
            progress.add(1)
        self._seconds += time.monotonic() - started

    @cached_property
    def _engine(self) -> engine.Engine:
        started = time.monotonic()
        job = self.job
        found = engine.start(job.settings, job.threads, scoring=job.scoring)
        log.info("%s started in %.0f s.", found.version, time.monotonic() - started)
        return found

    def _pending(
        self, prepared: Iterable[Request], attempt: int, progress: Progress
    ) -> Iterator[Request]:
        """Yield requests that are neither cached nor under way for an equal row."""
        for request in prepared:
            digest = request.digest
            is_known = digest in self._under_way or self.cache.get(digest) is not None
            if not (is_known or request.is_asked):
                progress.skip(1)
                continue
            self._digests[attempt - 1, request.key] = digest
            if is_known:
                self._is_answered |= digest not in self._under_way
                progress.skip(1)
                continue
            self._under_way.add(digest)
            yield request

    def _take(self, request: Request, answer: Response, version: str) -> None:
        """Cache an answer, or note why it is invalid: the only write path, for all engines."""
        self._under_way.discard(request.digest)
        self._n_asked += 1
        error = answer.error
        if error is None and (fault := answers.problem(answer)):
            error = f"the answer is invalid: {fault}"
        if error is None:
            self.cache.add(request.digest, answer, version)
            if not self.job.settings.loads_model:  # the answer of a server may be paid
                self.cache.commit()
            self._is_answered = True
            self._failures = 0
            self._n_tokens += answer.n_tokens or 0
            return
        self._failures += 1
        self._errors[request.digest] = error = one_line(error)
        self._give_up_after(error.rstrip("."), is_refused=answer.is_refused)

    def _give_up_after(self, error: str, *, is_refused: bool) -> None:
        """Raise UserError where further requests would fail as well.

        A rerun asks about refused pictures one after another, for all others have answers. They are
        no sign of a mistake until they are more than may lack an answer.
        """
        settings = self.job.settings
        if is_refused and not self._is_answered and self._failures >= MAX_REFUSED:
            raise UserError(
                f"The server of captioner.engine {settings.engine} refuses each request ({error}); "
                "check captioner.model, and whether it reads pictures and answers such questions."
            )
        most = MAX_CONSECUTIVE_FAILURES
        if is_refused:
            most = max(most, math.floor(settings.max_failed * self._n_rows) + 1)
        if self._failures >= most:
            raise UserError(
                f"{self._failures} requests failed one after another, the last with: {error}. The "
                "answers before them are cached: run again to ask for the rest."
            )

    def answers(self, row: int) -> list[Response]:
        """Return the answers about a row, one of each attempt, or why there is none.

        There are none about a row that was not asked about.
        """
        digests = [digest.decode() for digest in self._digests[:, row] if digest]
        if not digests:
            return []
        found = [answer for digest in digests if (answer := self.cache.get(digest))]
        error = self._errors.get(digests[0], "not answered")
        return found or [replace(failed(error), digest=digests[0])]

    def log_rates(self) -> None:
        seconds = max(self._seconds, 1e-9)
        log.info(
            "Asked %d requests about %d rows in %.1f s: %.1f %s/s, %.0f tokens/s.",
            self._n_asked,
            self._n_rows,
            self._seconds,
            self._n_asked / seconds,
            self.job.unit,
            self._n_tokens / seconds,
        )
