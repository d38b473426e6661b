"""Asking an engine about every row of a table, each request once.

Letters: N training images, R rows of a table (images or groups).
"""

import base64
import contextlib
import dataclasses
import io
import itertools
import logging
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from latteclip.captions import kept, room
from latteclip.captions.answers import Answer, AnswerStore
from latteclip.captions.bare_files import PNG, bare
from latteclip.captions.engines import start as engines
from latteclip.captions.engines.base import Captioner, CaptionerSettings
from latteclip.captions.pictures import Layout, data_url, lay_out
from latteclip.captions.requests import (
    ALL_ROWS,
    Choices,
    Identity,
    Questions,
    Request,
    Shard,
    digest,
    digest_of_images,
)
from latteclip.core.errors import UserError
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress, one_line
from latteclip.data.images import is_plain, open_rgb, read_bytes
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
HOPELESS = 50  # requests that fail one after another before a run gives up
CHUNKS = 8, 64  # requests that a worker prepares at a time: at least, at most
PIXELS = 8 * 1344**2  # and no more of them than show so many pixels
AHEAD = 8  # chunks that are ready or wait for a worker, besides those in work


@dataclass(frozen=True)
class Task:
    """A request before its images are read."""

    key: int
    paths: Sequence[str]
    prompt: str  # of this attempt
    choices: Choices | None = None  # as of the request


@dataclass(frozen=True)
class Prepared:
    """A request whose images are read; without pictures where its answer is held already."""

    task: Task
    image_digests: bytes
    pictures: Sequence[Image.Image | str] | None


@dataclass(frozen=True)
class Preparer:
    """What a worker does with a task."""

    identity: Identity
    as_urls: bool  # encode pictures for a server
    held: Container[str]  # digests of requests whose answers are held

    def __call__(self, task: Task) -> Prepared:
        """Read the images of a task, and decode them unless its answer is held."""
        contents = [read_image(path) for path in task.paths]
        image_digests = digest_of_images(contents)
        asked = digest(image_digests, len(contents), task.prompt, self.identity, task.choices)
        if asked in self.held:
            return Prepared(task, image_digests, None)
        return Prepared(task, image_digests, self._pictures(task.paths, contents))

    def _pictures(
        self, paths: Sequence[str], contents: Sequence[bytes]
    ) -> Sequence[Image.Image | str]:
        layout = self.identity.layout
        if self.as_urls and layout.kind != "grid" and layout.square is None:
            return [_url(*file, layout.max_side) for file in zip(paths, contents, strict=True)]
        pictures = show(layout, paths, contents)
        return [data_url(picture) for picture in pictures] if self.as_urls else pictures


def show(layout: Layout, paths: Sequence[str], contents: Sequence[bytes]) -> list[Image.Image]:
    """The RGB pictures that the model sees of the images at `paths`."""
    pictures = [
        open_rgb(path, content=io.BytesIO(content), max_side=layout.max_side)
        for path, content in zip(paths, contents, strict=True)
    ]
    return lay_out(pictures, layout)


def workers(preparer: Preparer, n: int, most_pixels: int) -> Workers[Task, Prepared]:
    """Processes that prepare tasks in order.

    Args:
        preparer: what they do with a task.
        n: how many processes.
        most_pixels: that a request shows. The fewer, the more go to a worker at a time, for each
            time costs this process as much as a small picture does.
    """
    least, most = CHUNKS
    return Workers(
        preparer,
        n,
        chunk=max(least, min(most, PIXELS // most_pixels)),
        ahead=AHEAD,
        name=lambda task: task.paths[0],
        threads_key="threads.caption",
    )


def read_image(path: str) -> bytes:
    """The bytes of an image."""
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Image {path} cannot be read ({error}); put it back, or index the images anew "
            "(snakemake -R index_images)."
        ) from None


def _url(path: str, content: bytes, max_side: int | None) -> str:
    """An image file as a data URL: its own pixels, where a server decodes them to the same picture.

    Nothing else of the file is told: no EXIF, no position, no preview.
    """
    try:
        plain = is_plain(io.BytesIO(content), max_side)
    except Exception:  # decoders fail in many ways on broken files
        plain = False  # for `open_rgb` to say
    pixels = bare(content) if plain else None
    if pixels is not None:
        kind = "png" if pixels.startswith(PNG) else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(pixels).decode()}"
    return data_url(open_rgb(path, content=io.BytesIO(content), max_side=max_side))


Pool = Workers[Task, Prepared]


@dataclass(frozen=True)
class CaptionJob:
    """How a table of captions, or of class scores, is made."""

    settings: CaptionerSettings
    output: str
    store: str | None  # folder of the kept answers; None keeps them for this run alone
    threads: int
    shard: Shard = ALL_ROWS

    @contextlib.contextmanager
    def keeping(self, what: str, fault: kept.Fault = kept.fault) -> Iterator[AnswerStore]:
        """The store of the answers, which a signal leaves whole.

        Args:
            what: is kept, in the plural.
            fault: see `AnswerStore`.
        """
        saved = f"The {what} so far are kept in {self.store}: rerun to go on."
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                ending_in_order(saved if self.store else "Without --store, all is lost.")
            )
            folder = self.store or stack.enter_context(tempfile.TemporaryDirectory())
            yield stack.enter_context(AnswerStore(folder, fault))


class Asking(ABC):
    """Asks what the store does not hold, turn by turn.

    In each turn a row has one question. What is asked in which turn, and of whom, is for the kinds
    of tables to say.
    """

    unit: str  # what a row gets, in the plural
    most_characters = kept.MOST_CHARACTERS  # of an answer

    def __init__(
        self,
        questions: Questions,
        settings: CaptionerSettings,
        identity: Identity,
        store: AnswerStore,
        threads: int,
    ) -> None:
        self.questions, self.settings = questions, settings
        special = engines.special_tokens(settings)
        self.identity = dataclasses.replace(identity, special_tokens=special)
        self.store, self.threads = store, threads
        self.image_digests = np.zeros((len(questions), 32), np.uint8)  # read as bytes
        self.errors: dict[str, str] = {}  # by the digest of the request
        self.captioner: Captioner | None = None
        self._asked: dict[int, str] = {}  # rows whose answers are on their way, with their digests
        self._on_their_way: set[str] = set()  # these digests
        self.n_asked = self.n_tokens = self.n_read = self._failed_in_a_row = 0
        self._seconds = 0.0  # of answering

    @abstractmethod
    def question(self, row: int, turn: int) -> tuple[str, Choices | None]:
        """The prompt about a row, and the choices that go with it."""

    @abstractmethod
    def start(self) -> Captioner:
        """Start the engine."""

    @property
    @abstractmethod
    def rows(self) -> Sequence[int]:
        """Those that are asked about."""

    @abstractmethod
    def take_turns(self, pool: Pool) -> None:
        """Call `take_turn` as often as there are turns."""

    def ask(self) -> None:
        """Ask about the rows in all turns.

        Raises:
            UserError: the engine cannot do what is asked, before an image is decoded; or nothing
                but failures, for HOPELESS requests or all that there are.
        """
        as_urls = not engines.loads_model(self.settings.engine)
        preparer = Preparer(self.identity, as_urls, self.store.held())
        with workers(preparer, self.threads, self.questions.most_pixels) as pool:
            if unanswered := [row for row in self._spread() if not self._is_held(row)]:
                self._check_room(unanswered)
                pool.start()  # the engine takes longer
                self._started()
            self.take_turns(pool)
        seconds = max(self._seconds, 1e-9)
        log.info(
            "Asked %d requests about %d rows in %.1f s: %.1f %s/s, %.0f tokens/s; "
            "a request has %.0f tokens.",
            self.n_asked,
            len(self.rows),
            self._seconds,
            self.n_asked / seconds,
            self.unit,
            self.n_tokens / seconds,
            self.n_read / max(1, self.n_asked),
        )

    def _spread(self) -> Sequence[int]:
        """A few rows from all over the table."""
        return self.rows[:: max(1, math.ceil(len(self.rows) / room.LOOKED_AT))]

    def _is_held(self, row: int) -> bool:
        contents = [read_image(path) for path in self.questions.paths_of(row)]
        self.image_digests[row] = np.frombuffer(digest_of_images(contents), np.uint8)
        return self.digest(row, 1) in self.store

    def _check_room(self, rows: Sequence[int]) -> None:
        """Refuse requests that are too long for the engine, before it starts."""
        questions = self.questions
        count = engines.counter(self.settings, self.identity.max_new_tokens)
        if not engines.loads_model(self.settings.engine):
            rows = rows[:1]  # a server answers in earnest
        if count is not None:
            room.check_room(
                count,
                [(self.question(row, 1)[0], tuple(questions.sizes_of(row))) for row in rows],
                questions.layout,
                questions.others,
                self.settings.max_failed,
            )

    def take_turn(self, turn: int, rows: Sequence[int], pool: Pool) -> None:
        """Ask about the rows what is not held."""
        progress = Progress(len(rows), self.unit)
        tasks = (self._task(row, turn) for row in rows)
        pending = self._pending(pool.in_order(tasks), turn, progress)
        first = next(pending, None)
        if first is None:
            return
        captioner = self._started()
        source = itertools.chain([first], pending)
        started, tokens_before = time.monotonic(), self.n_tokens
        progress.restart()
        for request, answer in captioner.answer(source, pool.are_behind):
            self._take(request, answer, captioner.version)
            rate = (self.n_tokens - tokens_before) / (time.monotonic() - started)
            progress.add(1, f"{rate:.0f} tokens/s")
        self._seconds += time.monotonic() - started

    def _task(self, row: int, turn: int) -> Task:
        return Task(row, self.questions.paths_of(row), *self.question(row, turn))

    def _started(self) -> Captioner:
        """The engine, started when the first request needs it."""
        if self.captioner is None:
            started = time.monotonic()
            self.captioner = self.start()
            seconds = time.monotonic() - started
            log.info("%s started in %.0f s.", self.captioner.version, seconds)
        return self.captioner

    def _pending(
        self, prepared: Iterable[Prepared], turn: int, progress: Progress
    ) -> Iterator[Request]:
        """What must be asked: it is neither held nor under way for an equal row."""
        for item in prepared:
            row = item.task.key
            self.image_digests[row] = np.frombuffer(item.image_digests, np.uint8)
            request_digest = self.digest(row, turn)
            known = request_digest in self.store or request_digest in self._on_their_way
            if known or item.pictures is None:
                progress.held(1)
                continue
            self._asked[row] = request_digest
            self._on_their_way.add(request_digest)
            yield Request(row, item.pictures, item.task.prompt, item.task.choices)

    def _take(self, request: Request, answer: Answer, engine: str) -> None:
        request_digest = self._asked.pop(request.key)
        self._on_their_way.discard(request_digest)
        self.n_asked += 1
        error = answer.error or self._keep(request_digest, answer, engine)
        if error is None:
            self._failed_in_a_row = 0
            self.n_tokens += answer.n_tokens or 0
            self.n_read += answer.n_read or 0
            return
        self._failed_in_a_row += 1
        self.errors[request_digest] = error = one_line(error)
        if self._failed_in_a_row >= HOPELESS:
            raise UserError(
                f"{self._failed_in_a_row} requests failed one after another, the last with: "
                f"{error.rstrip('.')}. The answers before them are kept."
            )

    def _keep(self, request_digest: str, answer: Answer, engine: str) -> str | None:
        """Keep an answer, or say what is wrong with it: the one door, for all engines."""
        said = answer.text, answer.finish_reason, answer.n_tokens
        fault = kept.fault_of_answer(*said, self.most_characters)
        fault = fault or self.store.add(request_digest, answer, engine)
        return None if fault is None else f"the answer is not kept: {fault}"

    def digest(self, row: int, turn: int) -> str:
        """The digest of the request about a row, whose images have been read."""
        images = self.image_digests[row].tobytes()
        prompt, choices = self.question(row, turn)
        return digest(images, self.questions.n_images, prompt, self.identity, choices)
