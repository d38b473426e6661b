"""Ask an engine about the rows of a table, each request once."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from latteclip.captions import answers, engine
from latteclip.captions.answers import AnswerCache
from latteclip.captions.engine import Response, loads_model
from latteclip.captions.pictures import Layout, Preparer
from latteclip.captions.questions import Questions, Request
from latteclip.config.keys import CaptionerSection
from latteclip.core.errors import UserError, ending_in_order
from latteclip.core.terminal import Progress
from latteclip.data.images import Workers

log = logging.getLogger(__name__)
RequestOf = Callable[[int], Request]  # the request about a row
MAX_CONSECUTIVE_FAILURES = 50  # requests, before a run gives up


def is_poor(answer: Response | None) -> bool:
    """Return whether there is an answer, which is empty or cut."""
    if answer is None or answer.error is not None:
        return False
    return answer.finish_reason == "length" or not answer.text.strip()


def write_answers(
    questions: Questions,
    request_about: RequestOf,
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
    request_again: RequestOf | None = None,
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
        runner = Runner(
            *(captioner, threads, scoring, request_about, request_again),
            *(identity, cache, pool),
        )
        runner.ask(questions.order)

        def row_of(row: int) -> answers.Row:
            answer = runner.answer(row) if row in questions.wanted else None
            return columns_of(row, answer), answer

        rows = map(row_of, range(len(questions)))
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
    request_about: RequestOf
    request_again: RequestOf | None
    identity: str
    cache: AnswerCache
    pool: Workers[Request, Request]
    failed: dict[str, Response] = field(default_factory=dict)  # by digest of the request
    n_asked: int = 0
    n_failures: int = 0  # requests that failed one after another
    is_answered: bool = False  # whether there is any answer, now or of an earlier run
    seconds: float = 0.0  # of answering

    def ask(self, rows: Sequence[int]) -> None:
        """Answer a request about each of these rows, in their order, unless it is cached.

        Rows whose answer is empty or cut get another request, if there is one.
        """
        self._ask_twice(rows, self.request_about)
        if self.request_again is not None:
            poor = [row for row in rows if is_poor(self._found(self.request_about(row)))]
            self._ask_twice(poor, self.request_again)

    def answer(self, row: int) -> Response | None:
        """Return the answer about a row, also of an earlier run, or why there is none.

        A whole second answer takes the place of an empty or cut one, with the tokens of both.
        """
        first = self._found(self.request_about(row))
        if first is None or self.request_again is None or not is_poor(first):
            return first
        second = self._found(self.request_again(row))
        if second is None or second.error is not None:
            return first
        n_tokens = (first.n_tokens or 0) + (second.n_tokens or 0)
        n_read = (first.n_read or 0) + (second.n_read or 0)
        better = first if is_poor(second) else second
        return replace(better, n_tokens=n_tokens, n_read=n_read)

    def _found(self, request: Request) -> Response | None:
        digest = answers.digest(request, self.identity)
        return self.cache.get(digest) or self.failed.get(digest)

    def _ask_twice(self, rows: Sequence[int], request_of: RequestOf) -> None:
        """Ask about rows; what a server fails to answer is asked again, but not what it refuses."""
        failed = self._ask(rows, request_of, MAX_CONSECUTIVE_FAILURES)
        if not loads_model(self.captioner):  # a model would fail again
            self._ask(failed, request_of, math.inf)

    def _ask(self, rows: Sequence[int], request_of: RequestOf, most: float) -> list[int]:
        """Ask about rows until `most` requests fail one after another; return what failed."""
        failed = list[int]()
        self.n_failures = 0
        progress = Progress(len(rows), "answers")
        pending = self.pool.in_order(self._pending(map(request_of, rows), progress))
        first = next(pending, None)
        if first is None:
            return failed
        found = self._engine
        started = time.monotonic()
        for request, answer in found.answer(itertools.chain([first], pending)):
            self._take(request, answer, most)
            if answer.error is not None and not answer.is_refused:
                failed.append(request.key)
            progress.add(1)
        self.seconds += time.monotonic() - started
        return failed

    def _pending(
        self, requests: Iterable[Request], progress: Progress
    ) -> Iterator[Request]:
        """Yield requests that are neither cached nor under way for an equal row."""
        under_way = set()
        for request in requests:
            digest = answers.digest(request, self.identity)
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
        digest = answers.digest(request, self.identity)
        if answer.error is None:
            self.cache.add(digest, answer)
            if not loads_model(self.captioner):  # the answer may be paid
                self.cache.commit()
            self.is_answered = True
            self.n_failures = 0
            return
        self.failed[digest] = answer
        if answer.is_refused and self.is_answered:
            return
        self.n_failures += 1
        if self.n_failures >= most:
            raise UserError(
                f"{self.n_failures} requests failed one after another, the last with: "
                f"{answer.error.rstrip('.')}. Check captioner.engine and captioner.model. The "
                "answers before them are cached: run again to ask for the rest."
            )
