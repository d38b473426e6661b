"""Worker processes that read, identify and decode images ahead of the engine.

Imports neither torch nor an engine: a worker starts in a fraction of a second and stays small.
"""

import base64
import io
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from latteclip.captions import answers, request
from latteclip.captions.pictures import grid
from latteclip.captions.request import Identity, Layout
from latteclip.core.errors import UserError
from latteclip.data.images import is_plain, open_rgb

CHUNK = 8  # requests that a worker prepares at a time
AHEAD = 8  # chunks that are ready or wait for a worker, beside those that workers are at


@dataclass(frozen=True)
class Task:
    """A request before its images are read."""

    key: int
    paths: Sequence[str]
    prompt: str  # of this attempt


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
    held: np.ndarray  # heads of the digests whose answers are held, see `answers.has`

    def __call__(self, tasks: Sequence[Task]) -> list[Prepared]:
        return [self._prepare(task) for task in tasks]

    def _prepare(self, task: Task) -> Prepared:
        contents = [_read(path) for path in task.paths]
        image_digests = request.digest_of_images(contents)
        digest = request.digest(image_digests, len(contents), task.prompt, self.identity)
        if answers.has(self.held, digest):
            return Prepared(task, image_digests, None)
        return Prepared(task, image_digests, self._pictures(task.paths, contents))

    def _pictures(
        self, paths: Sequence[str], contents: Sequence[bytes]
    ) -> Sequence[Image.Image | str]:
        layout = self.identity.layout
        if self.as_urls and layout.kind != "grid":
            return [_url(*file, layout.max_side) for file in zip(paths, contents, strict=True)]
        pictures = show(layout, paths, contents)
        return [_encoded(picture) for picture in pictures] if self.as_urls else pictures


def show(layout: Layout, paths: Sequence[str], contents: Sequence[bytes]) -> list[Image.Image]:
    """The RGB pictures that the model sees of the images at `paths`."""
    pictures = [
        open_rgb(path, content=io.BytesIO(content), max_side=layout.max_side)
        for path, content in zip(paths, contents, strict=True)
    ]
    return [grid(pictures, layout.canvas, layout.gap)] if layout.kind == "grid" else pictures


class Workers:
    """Processes that prepare tasks in order; only a few are on their way at any time."""

    def __init__(self, preparer: Preparer, n: int) -> None:
        # Not forked from this process, which may hold the threads and the GPU of an engine.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._room = n + AHEAD
        self._pool = ProcessPoolExecutor(n, context, _start_worker, (preparer,))
        self._waiting: deque[tuple[Task, Future[list[Prepared]]]] = deque()
        self._ready: deque[Prepared] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def prepare(self, tasks: Iterable[Task]) -> Iterator[Prepared]:
        """Each task prepared, in order."""
        source = iter(tasks)
        while True:
            while len(self._waiting) < self._room:
                chunk = list(itertools.islice(source, CHUNK))
                if not chunk:
                    break
                self._waiting.append((chunk[0], self._pool.submit(_work, chunk)))
            if not self._waiting:
                return
            first, future = self._waiting.popleft()
            try:
                self._ready.extend(future.result())
            except BrokenProcessPool:
                raise UserError(
                    f"A process that decodes images died near {first.paths[0]} (out of memory, or "
                    "a file that crashes the decoder); set threads.caption lower or remove the "
                    "file."
                ) from None

            while self._ready:
                yield self._ready.popleft()

    def are_behind(self) -> bool:
        """Whether the next task is still being prepared."""
        return not self._ready and bool(self._waiting) and not self._waiting[0][1].done()


_preparer: Preparer  # of a worker process


def _start_worker(preparer: Preparer) -> None:
    global _preparer
    _preparer = preparer
    for stop in (signal.SIGINT, signal.SIGTERM):  # the parent stops its workers
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(tasks: Sequence[Task]) -> list[Prepared]:
    return _preparer(tasks)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"Image {path} cannot be read ({error}); put it back, or index the images anew "
            "(snakemake -R index_images)."
        ) from None


def _url(path: str, content: bytes, max_side: int | None) -> str:
    """An image file as a data URL: as it is, where a server decodes it to the same picture."""
    try:
        plain = is_plain(io.BytesIO(content), max_side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        plain = False  # for `open_rgb` to say
    if plain:
        kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return _encoded(open_rgb(path, content=io.BytesIO(content), max_side=max_side))


def _encoded(picture: Image.Image) -> str:
    """A picture as a data URL, without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
