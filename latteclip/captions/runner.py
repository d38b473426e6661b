"""Ask an engine about the rows of a table, each request once."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from latteclip.captions import answers, engine
from latteclip.captions.answers import AnswerCache
from latteclip.captions.engine import Response, loads_model
from latteclip.captions.pictures import Layout, pictures_of, read_image
from latteclip.captions.questions import Questions, Request
from latteclip.config.keys import CaptionerSection
from latteclip.core.errors import UserError, ending_in_order
from latteclip.core.terminal import Progress
from latteclip.data.images import Workers

log = logging.getLogger(__name__)
MAX_CONSECUTIVE_FAILURES = 50  # requests, before a run gives up


@dataclass(frozen=True)
class Preparer:
    """Reads and decodes images ahead of the engine, in worker processes."""

    layout: Layout

    def __call__(self, request: Request) -> Request:
        """Give a request its pictures."""
        pairs = zip(request.paths, request.checksums, strict=True)
        contents = [read_image(*pair) for pair in pairs]
        pictures = pictures_of(self.layout, request.paths, contents)
        return replace(request, pictures=pictures)


def is_poor(answer: Response) -> bool:
    """Return whether an answer is empty or cut."""
    return answer.finish_reason == "length" or not answer.text.strip()


def write_answers(
    questions: Questions,
    request_about: Callable[[int], Request],
    columns_of: Callable[[int, Response | None], dict[str, Any]],
    schema: pa.Schema,
    layout: Layout,
    captioner: CaptionerSection,
    output: str,
    store: str,
    *,
    shard: str,
    labeller: str,
    threads: int,
    scoring: bool = False,
    request_again: Callable[[int], Request] | None = None,
) -> None:
    """Ask about the rows, and write a table of columns that follow from the answer about each.

    A row whose answer is empty or cut is asked about once more, with `request_again` if given.
    A signal leaves the cache of the answers whole. Each shard, and each labeller, writes a file of
    its own in it. Requests have choices if `scoring`.
    """
    name = f"{shard.replace('/', '-of-')}{labeller and f'.{labeller}'}"
    saved = f"The answers so far are cached in {store}: rerun to go on."
    pool = Workers(Preparer(layout), threads, lambda request: request.paths[0])
    with ending_in_order(saved), AnswerCache(store, name) as cache, pool:
        identity = answers.identity(captioner, layout, scoring=scoring)
        runner = Runner(captioner, threads, scoring, request_about, identity, cache, pool)
        runner.ask(questions.order)
        if request_again is not None:
            runner.ask_again(request_again)
        rows = (
            (columns_of(row, answer), answer)
            for row in range(len(questions))
            for answer in [runner.answer(row) if row in questions.wanted else None]
        )
        answers.write_rows(rows, schema, captioner, output)
    rate = runner.n_asked / max(runner.seconds, 1e-9)
    log.info(
        "Asked %d requests in %.1f s: %.1f answers/s.", runner.n_asked, runner.seconds, rate
    )


@dataclass
class Runner:
    """Asks an engine, once a request needs it, for the answers that the cache lacks."""

    captioner: CaptionerSection
    threads: int
    scoring: bool
    request_about: Callable[[int], Request]
    identity: str
    cache: AnswerCache
    pool: Workers[Request, Request]
    digests: dict[int, str] = field(default_factory=dict)  # of answers, by row
    discarded: dict[int, Response] = field(default_factory=dict)  # by row
    failed: dict[str, Response] = field(default_factory=dict)  # by digest
    n_asked: int = 0
    n_failures: int = 0  # requests that failed one after another
    is_answered: bool = False  # whether there is any answer, now or of an earlier run
    seconds: float = 0.0  # of answering

    def ask(self, rows: Sequence[int]) -> None:
        """Answer a request about each of these rows, in their order, unless it is cached.

        What a server fails to answer is asked once more, but not what it refuses.
        """
        failed = self._ask(rows, MAX_CONSECUTIVE_FAILURES)
        if not loads_model(self.captioner):  # a model would fail again
            self._ask(failed, math.inf)

    def ask_again(self, request_about: Callable[[int], Request]) -> None:
        """Ask otherwise about rows whose answer is empty or cut; a whole second answer counts."""
        first = {row: digest for row, digest in self.digests.items() if self._is_poor(row)}
        self.request_about = request_about
        self.ask(list(first))
        for row, other in first.items():
            if (second := self.cache.get(self.digests[row])) is None or is_poor(second):
                self.digests[row], other = other, self.digests[row]
            if answer := self.cache.get(other):
                self.discarded[row] = answer

    def _is_poor(self, row: int) -> bool:
        answer = self.cache.get(self.digests[row])
        return answer is not None and is_poor(answer)

    def answer(self, row: int) -> Response | None:
        """Return the answer about a row, also of an earlier run, or why there is none.

        Its tokens are also those of the answer in whose place it is.
        """
        if row not in self.digests:  # it was not asked about in this run
            self._note(self.request_about(row))
        digest = self.digests[row]
        found = self.cache.get(digest) or self.failed.get(digest)
        if found is None or row not in self.discarded:
            return found
        other = self.discarded[row]
        written = (found.n_tokens or 0) + (other.n_tokens or 0)
        read = (found.n_read or 0) + (other.n_read or 0)
        return replace(found, n_tokens=written, n_read=read)

    def _note(self, request: Request) -> str:
        """Return the digest of a request, and note it for its row."""
        digest = answers.digest(request, self.identity)
        self.digests[request.key] = digest
        return digest

    def _ask(self, rows: Sequence[int], most: float) -> list[int]:
        """Ask about rows until `most` requests fail one after another; return what failed."""
        failed = list[int]()
        self.n_failures = 0
        progress = Progress(len(rows), "answers")
        pending = self.pool.in_order(self._pending(rows, progress))
        first = next(pending, None)
        if first is None:
            return failed
        found = self._engine
        started = time.monotonic()
        progress.restart()
        for request, answer in found.answer(itertools.chain([first], pending)):
            self._take(request, answer, most)
            if answer.error is not None and not answer.is_refused:
                failed.append(request.key)
            progress.add(1)
        self.seconds += time.monotonic() - started
        return failed

    def _pending(self, rows: Sequence[int], progress: Progress) -> Iterator[Request]:
        """Yield requests that are neither cached nor under way for an equal row."""
        under_way = set()
        for request in map(self.request_about, rows):
            digest = self._note(request)
            is_cached = self.cache.get(digest) is not None
            self.is_answered |= is_cached
            if is_cached or digest in under_way:
                progress.skip(1)
                continue
            under_way.add(digest)
            yield request

    @cached_property
    def _engine(self) -> engine.Engine:
        started = time.monotonic()
        found = engine.start(self.captioner, self.threads, scoring=self.scoring)
        seconds = time.monotonic() - started
        log.info("Engine %s started in %.0f s.", self.captioner.engine, seconds)
        return found

    def _take(self, request: Request, answer: Response, most: float) -> None:
        """Cache an answer, or note why there is none. UserError: further ones would fail."""
        self.n_asked += 1
        if answer.error is None:
            self.cache.add(self.digests[request.key], answer)
            if not loads_model(self.captioner):  # the answer may be paid
                self.cache.commit()
            self.is_answered = True
            self.n_failures = 0
            return
        self.failed[self.digests[request.key]] = answer
        if answer.is_refused and self.is_answered:
            return
        self.n_failures += 1
        if self.n_failures >= most:
            raise UserError(
                f"{self.n_failures} requests failed one after another, the last with: "
                f"{answer.error.rstrip('.')}. Check captioner.engine and captioner.model. The "
                "answers before them are cached: run again to ask for the rest."
            )
