"""Get answers to questions: asked for once, cached in SQLite, and written as a table."""

import contextlib
import importlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from latteclip.captions.engine import Engine, Response
from latteclip.captions.questions import Layout, Questions, Request
from latteclip.config.keys import CaptionerSection
from latteclip.config.registry import ENGINES
from latteclip.core import files, tables
from latteclip.core.errors import Terminated, UserError, ending_in_order
from latteclip.core.terminal import FOR_RUN, Progress, counted, log_work
from latteclip.data.images import Workers

log = logging.getLogger(__name__)
MAX_CONSECUTIVE_FAILURES = 50  # requests, before a run gives up
COMMIT_ANSWERS = 20  # written to the disk together
CREATE = """
    CREATE TABLE IF NOT EXISTS answers
        (digest TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, n_tokens INTEGER, n_read INTEGER)
"""
INSERT = """
    INSERT OR IGNORE INTO answers
        VALUES (:digest, :text, :finish_reason, :n_tokens, :n_read)
"""
SELECT = (
    "SELECT text, finish_reason, n_tokens, n_read FROM answers WHERE digest = ?"
)


def write_answers(
    questions: Questions,
    captioner: CaptionerSection,
    output: str,
    store: str,
    labeller: str,
    threads: int,
) -> None:
    """Ask the questions, and write a table of columns that follow from the answer to each.

    A signal leaves the cache of the answers whole. Each shard, and each labeller, writes a file of
    its own in it. UserError: the engine does not start, fails again and again, or leaves too many
    questions without an answer.
    """
    name = f"{questions.shard.replace('/', '-of-')}{labeller and f'.{labeller}'}"
    saved = f"The answers so far are cached in {store}: rerun to go on."
    images = Workers(
        questions.layout.with_pictures, threads, lambda each: each.paths[0]
    )
    with ending_in_order(saved), AnswerCache(store, name) as cache, images:
        runner = Runner(questions, captioner, threads, cache, images)
        runner.ask_all()
        _write_table(runner, output)
    n, seconds = runner.n_asked, runner.seconds
    log_work(log, f"Asked {counted(n, 'question')}", seconds, extra=FOR_RUN)


def start(
    captioner: CaptionerSection, threads: int, *, scoring: bool = False
) -> Engine:
    """Start an engine, whose requests have choices if `scoring`."""
    # By its name, so that its edit reruns this engine's stages alone.
    module = importlib.import_module(
        f"latteclip.captions.engines.{captioner.engine}"
    )
    started = time.monotonic()
    engine: Engine = module.make(captioner, threads, scoring)
    seconds = time.monotonic() - started
    log.info("Engine %s started in %.0f s.", captioner.engine, seconds)
    return engine


# --- which answer is whose -----------------------------------------------------------------------


def identity(captioner: CaptionerSection, layout: Layout, *, scoring: bool) -> str:
    """Return everything that decides an answer, besides the images and the question, as JSON."""
    decides = {
        "model": _fingerprint(captioner),
        "revision": captioner.revision,
        "dtype": captioner.dtype,
        "quantization": captioner.quantization,
        # With scores no text is written, so its length decides nothing.
        "max_new_tokens": None if scoring else captioner.max_new_tokens,
        "layout": asdict(layout),
    }
    return json.dumps(decides, sort_keys=True)


def _fingerprint(captioner: CaptionerSection) -> str:
    """Return a digest of a folder's files, name and commit on the hub, or a server's name."""
    from huggingface_hub import hf_hub_download

    model = captioner.model
    if Path(model).is_dir():
        return files.fingerprint(model)
    if ENGINES[captioner.engine].loads_model:
        # Without the file no engine starts.
        with contextlib.suppress(OSError, ValueError):
            file = hf_hub_download(
                model, "config.json", revision=captioner.revision
            )
            return f"{model}@{Path(file).parent.name}"
    return model


def digest(request: Request, identity: str) -> str:
    """Return the key of a request's answer."""
    question = (request.prompt, repr(request.choices), identity)
    return files.digest(*request.checksums, *question)


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
        self._files = {
            path: files.sqlite_file(path) for path in (self.path, *others)
        }
        with files.sqlite_errors(self.path), self._files[self.path] as file:
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
            with files.sqlite_errors(path):
                if row := file.execute(SELECT, [digest]).fetchone():
                    return Response(**row)
        return None

    def add(self, digest: str, answer: Response) -> None:
        """Cache an answer, which is on the disk after the next commit."""
        self._pending[digest] = answer
        if len(self._pending) >= COMMIT_ANSWERS:
            self.commit()

    def commit(self) -> None:
        """Write the pending answers to the disk, all of them or none."""
        rows = [
            {"digest": digest, **asdict(answer)}
            for digest, answer in self._pending.items()
        ]
        with files.sqlite_errors(self.path), self._files[self.path] as file:
            file.executemany(INSERT, rows)
        self._pending.clear()


# --- asking --------------------------------------------------------------------------------------


def is_poor(answer: Response | None) -> bool:
    """Return whether there is an answer, which is empty or cut."""
    if answer is None or answer.error is not None:
        return False
    return answer.finish_reason == "length" or not answer.text.strip()


@dataclass
class Runner:
    """Asks an engine, once a request needs it, for the answers that the cache lacks."""

    questions: Questions
    captioner: CaptionerSection
    threads: int
    cache: AnswerCache
    images: Workers[Request, Request]
    # By row, the digest of its request, and of the request after an empty or cut answer.
    first: Mapping[int, str] = field(default_factory=dict)
    second: Mapping[int, str] = field(default_factory=dict)
    # By digest of the request.
    failed: dict[str, Response] = field(default_factory=dict)
    n_asked: int = 0
    # Whether there is any answer, now or of an earlier run.
    is_answered: bool = False
    seconds: float = 0.0  # of answering

    def ask_all(self) -> None:
        """Ask about all rows, and once more where the answer is empty or cut."""
        self.first = self._digests(self.questions.wanted, again=False)
        self._ask(self.first, again=False)
        first = self.first.items()
        poor = [row for row, digest in first if is_poor(self._found(digest))]
        self.second = self._digests(poor, again=True)
        self._ask(self.second, again=True)

    def answer(self, row: int) -> Response | None:
        """Return the answer about a row, also of an earlier run, or why there is none.

        A whole second answer takes the place of an empty or cut one, with the tokens of both.
        """
        first = self._found(self.first[row]) if row in self.first else None
        second = self._found(self.second[row]) if row in self.second else None
        if first is None or second is None or second.error is not None:
            return first
        n_tokens = (first.n_tokens or 0) + (second.n_tokens or 0)
        n_read = (first.n_read or 0) + (second.n_read or 0)
        better = first if is_poor(second) else second
        return replace(better, n_tokens=n_tokens, n_read=n_read)

    def _found(self, digest: str) -> Response | None:
        return self.cache.get(digest) or self.failed.get(digest)

    def _digests(self, rows: Iterable[int], *, again: bool) -> dict[int, str]:
        request = self.questions.request
        return {
            row: digest(request(row, again=again), self._identity) for row in rows
        }

    @cached_property
    def _identity(self) -> str:
        questions = self.questions
        return identity(
            self.captioner, questions.layout, scoring=questions.scoring
        )

    @cached_property
    def _engine(self) -> Engine:
        return start(self.captioner, self.threads, scoring=self.questions.scoring)

    def _ask(self, digests: Mapping[int, str], *, again: bool) -> None:
        """Ask about these rows, in the order of the questions, unless they have an answer.

        Equal requests are one. What a server fails to answer is asked again, but not what it
        refuses.
        """
        rows = [row for row in self.questions.order if row in digests]
        row_of = {digests[row]: row for row in rows}
        new = [
            row for digest, row in row_of.items() if self.cache.get(digest) is None
        ]
        self.is_answered |= len(new) < len(row_of)
        failed = self._round(new, digests, again, MAX_CONSECUTIVE_FAILURES)
        if not self._loads_model:  # a model would fail again
            self._round(failed, digests, again, math.inf)

    def _round(
        self,
        rows: Sequence[int],
        digests: Mapping[int, str],
        again: bool,
        most: float,
    ) -> list[int]:
        """Ask about rows, and return those without an answer, but not those that were refused.

        UserError: `most` requests failed one after another, so that further ones would fail.
        """
        failed = list[int]()
        if not rows:
            return failed
        n_failures = 0
        engine = self._engine
        progress = Progress(len(rows), "answers")
        requests = (self.questions.request(row, again=again) for row in rows)
        answers: Any = engine.answer(self.images.in_order(requests))
        try:
            for request, answer in answers:
                self.n_asked += 1
                progress.add(1)
                digest = digests[request.key]
                if answer.error is None:
                    self._cache(digest, answer)
                    n_failures = 0
                    continue
                self.failed[digest] = answer
                if not answer.is_refused:
                    failed.append(request.key)
                elif self.is_answered:
                    continue
                n_failures += 1
                if n_failures >= most:
                    raise UserError(
                        f"{n_failures} requests failed one after another, the last with: "
                        f"{answer.error.rstrip('.')}. Check captioner.engine and captioner.model. "
                        "The answers before them are cached: run again to ask for the rest."
                    )
        except Terminated as ended:
            # The engine yields what has arrived meanwhile, if it did not raise this itself.
            for request, answer in itertools.chain(
                [answers.throw(ended)], answers
            ):
                if answer.error is None:
                    self._cache(digests[request.key], answer)
        self.seconds += progress.seconds
        return failed

    def _cache(self, digest: str, answer: Response) -> None:
        self.cache.add(digest, answer)
        if not self._loads_model:  # the answer may be paid
            self.cache.commit()
        self.is_answered = True

    @property
    def _loads_model(self) -> bool:
        return ENGINES[self.captioner.engine].loads_model


# --- tables of answers ---------------------------------------------------------------------------


@dataclass
class AnswersMetadata:
    """The metadata of CAPTIONS and CLASS_SCORES: who answered, and what that took."""

    model: str  # which was asked, or the user's file
    questions: int = 0  # rows that were asked about, now or in an earlier run
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
            f"{counted(self.questions, 'question')} to {self.model}, "
            f"{self.tokens_read:,} tokens read, {self.tokens_written:,} written, "
            f"{counted(self.not_asked, 'image')} left out, "
            f"{self.failed:,} failed, {self.refused:,} refused, {self.empty:,} empty"
        )

    def count(self, columns: Mapping[str, Any], answer: Response | None) -> None:
        """Count a row and its answer."""
        if answer is None:
            self.not_asked += 1
            return
        self.questions += 1
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


def _write_table(runner: Runner, output: str) -> None:
    """Write the table of the questions in pieces.

    UserError: no row has an answer, or more lack one than captioner.max_failed, without those that
    a server refuses.
    """
    questions, captioner = runner.questions, runner.captioner
    schema = tables.CLASS_SCORES if questions.scoring else tables.CAPTIONS
    metadata = AnswersMetadata(captioner.model)
    reason: str | None = None
    rows = iter(range(len(questions)))
    with tables.writing(output, schema, metadata) as add:
        while piece := list(itertools.islice(rows, tables.CAPTION_ROWS)):
            columns = []
            for row in piece:
                answer = runner.answer(row)
                columns.append(questions.columns(row, answer))
                metadata.count(columns[-1], answer)
                reason = reason or columns[-1]["error"]
            add(pa.Table.from_pylist(columns, schema))
        asked = metadata.questions
        missing = metadata.failed + metadata.empty
        allowed = captioner.max_failed
        if 0 < asked == missing + metadata.refused or missing > allowed * asked:
            raise UserError(
                f"{metadata.model} has no answer about {metadata.failed + metadata.refused} of "
                f"{asked} images or groups ({reason or 'no request failed'}) and an empty one "
                f"about {metadata.empty}; captioner.max_failed allows {allowed:.0%}. The others "
                "are cached: run again to ask for these, allow more of them, or try another "
                "prompt, captioner.model or scores.kind."
            )
    log.info("Answers to %s.", metadata.in_words, extra=FOR_RUN)
