"""Asking an engine about every row of a table, each request once.

Letters: N training images, R rows of a table (images or groups).
"""

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from latteclip.captions.answers import Answer, AnswerStore, KeptAnswer, RowOutcome
from latteclip.captions.clean import clean
from latteclip.captions.engines import start as engines
from latteclip.captions.engines.base import Captioner, CaptionerSettings
from latteclip.captions.prepare import Prepared, Preparer, Task, workers
from latteclip.captions.questions import Questions
from latteclip.captions.request import Request, digest, prompt_of
from latteclip.core.errors import UserError
from latteclip.core.progress import Progress
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
HOPELESS = 50  # requests that fail one after another before a run gives up


class Asking:
    """Asks what the store does not hold, and says what became of each row."""

    def __init__(
        self, questions: Questions, settings: CaptionerSettings, store: AnswerStore, threads: int
    ) -> None:
        self.questions, self.settings, self.store = questions, settings, store
        self.threads = threads
        self.identity = settings.identity(questions.layout)
        self.image_digests = np.zeros((len(questions), 32), np.uint8)  # read as bytes
        self.errors: dict[str, str] = {}  # by the digest of the request
        self.captioner: Captioner | None = None
        self._on_their_way: set[str] = set()  # digests
        self.n_asked = self.n_tokens = self._failed_in_a_row = 0
        self._seconds = 0.0  # of answering

    def ask(self) -> None:
        """Ask once about every row, and again about those with an empty or cut answer.

        Raises:
            UserError: nothing but failures, for HOPELESS requests or all that there are.
        """
        as_urls = not engines.loads_model(self.settings.engine)
        preparer = Preparer(self.identity, as_urls, self.store.keys())
        everything = range(len(self.questions))
        with workers(preparer, self.threads) as pool:
            self._attempt(1, everything, pool)
            again = [row for row in everything if self._wants_another(row)]
            if again:
                log.info("%d answers are empty or cut.", len(again))
                self._attempt(2, again, pool)
        seconds = max(self._seconds, 1e-9)
        log.info(
            "Asked %d requests about %d rows in %.0f s: %.1f captions/s, %.0f tokens/s.",
            self.n_asked,
            len(self.questions),
            self._seconds,
            self.n_asked / seconds,
            self.n_tokens / seconds,
        )

    def _attempt(self, attempt: int, rows: Sequence[int], pool: Workers[Task, Prepared]) -> None:
        progress = Progress(len(rows), "captions")
        tasks = (self._task(row, attempt) for row in rows)
        pending = self._pending(pool.in_order(tasks), attempt, progress)
        first = next(pending, None)
        if first is None:
            return
        captioner = self._start()
        source = itertools.chain([first], pending)
        started, tokens_before = time.monotonic(), self.n_tokens
        progress.restart()
        for request, answer in captioner.answer(source, pool.are_behind):
            self._take(request, answer, attempt, captioner.version)
            rate = (self.n_tokens - tokens_before) / (time.monotonic() - started)
            progress.add(1, f"{rate:.0f} tokens/s")
        self._seconds += time.monotonic() - started

    def _task(self, row: int, attempt: int) -> Task:
        return Task(row, self.questions.paths_of(row), self._prompt(row, attempt))

    def _prompt(self, row: int, attempt: int) -> str:
        return prompt_of(self.questions.prompts(row), attempt)

    def _start(self) -> Captioner:
        """The engine, started when the first request needs it."""
        if self.captioner is None:
            started = time.monotonic()
            several = self.questions.layout.kind == "multi_image"
            pictures = self.questions.n_images if several else 1
            self.captioner = engines.start(self.settings, self.threads, pictures)
            seconds = time.monotonic() - started
            log.info("%s started in %.0f s.", self.captioner.version, seconds)
        return self.captioner

    def _pending(
        self, prepared: Iterable[Prepared], attempt: int, progress: Progress
    ) -> Iterator[Request]:
        """What must be asked: it is neither held nor under way for an equal row."""
        for item in prepared:
            row = item.task.key
            self.image_digests[row] = np.frombuffer(item.image_digests, np.uint8)
            request_digest = self._digest(row, attempt)
            known = request_digest in self.store or request_digest in self._on_their_way
            if known or item.pictures is None:
                progress.held(1)
                continue
            self._on_their_way.add(request_digest)
            yield Request(row, item.pictures, item.task.prompt)

    def _take(self, request: Request, answer: Answer, attempt: int, engine: str) -> None:
        request_digest = self._digest(request.key, attempt)
        self._on_their_way.discard(request_digest)
        self.n_asked += 1
        if answer.error is None:
            self._failed_in_a_row = 0
            self.n_tokens += answer.n_tokens or 0
            self.store.add(request_digest, answer, engine)
            return
        self._failed_in_a_row += 1
        self.errors[request_digest] = answer.error
        if self._failed_in_a_row >= HOPELESS:
            raise UserError(
                f"{self._failed_in_a_row} requests failed one after another, the last with: "
                f"{answer.error.rstrip('.')}. The answers before them are kept."
            )

    def _digest(self, row: int, attempt: int) -> str:
        """The digest of the request about a row, whose images have been read."""
        images = self.image_digests[row].tobytes()
        return digest(images, self.questions.n_images, self._prompt(row, attempt), self.identity)

    def _wants_another(self, row: int) -> bool:
        first = self.store.get(self._digest(row, 1))
        return first is not None and not _is_good(first)

    def outcome(self, row: int) -> RowOutcome:
        """What became of a row: its first good answer, else one that has a text."""
        request_digest = self._digest(row, 1)
        first = self.store.get(request_digest)
        if first is None:
            error = self.errors.get(request_digest, "not answered")
            return RowOutcome("", "error", None, 1, error, request_digest, "", None)
        second = None if _is_good(first) else self.store.get(self._digest(row, 2))
        if second is None:
            return _outcome(first, 1, request_digest)
        best = second if _is_good(second) or not clean(first.answer.text) else first
        return _outcome(best, 2, request_digest)


def _is_good(kept: KeptAnswer) -> bool:
    return kept.answer.finish_reason != "length" and bool(clean(kept.answer.text))


def _outcome(kept: KeptAnswer, attempts: int, request_digest: str) -> RowOutcome:
    answer = kept.answer
    return RowOutcome(
        clean(answer.text),
        answer.finish_reason,
        answer.n_tokens,
        attempts,
        None,
        request_digest,
        kept.engine,
        kept.date,
    )
