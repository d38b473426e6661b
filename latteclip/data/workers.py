"""Decode images ahead of their use, in an ordered pool of worker processes."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from latteclip.core.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


class Workers(contextlib.AbstractContextManager["Workers[T, R]"], Generic[T, R]):
    """Processes that work on tasks in order, with a bounded number of tasks in flight.

    They start quickly and stay small if the module of `work` imports nothing heavy, such as torch.
    """

    def __init__(
        self,
        work: Callable[[T], R],
        n: int,
        *,
        chunk: int,
        ahead: int,
        threads_key: str,
        name: Callable[[T], str] = str,
    ) -> None:
        """Create a pool of n processes, which start with the first tasks.

        Args:
            work: a function, or an object of a class, at the top level of its module.
            chunk: tasks that a worker takes at a time.
            ahead: chunks that are ready or wait for a worker, besides the n in progress.
            threads_key: the key of the configuration that sets n.
            name: returns the name of a task's image for messages.
        """
        # Not forked from this process, which may hold the threads and the GPU of an engine.
        context = start_context([__name__, work.__module__])
        self._chunk = chunk
        self._room = n + ahead
        self._name = name
        self._threads_key = threads_key
        self._pool = ProcessPoolExecutor(n, context, _start_worker, (work,))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def in_order(self, tasks: Iterable[T]) -> Iterator[R]:
        """Yield the result of each task in order, or raise UserError where a process died."""
        source = iter(tasks)
        chunks = iter(lambda: list(itertools.islice(source, self._chunk)), [])
        waiting = deque[tuple[T, Future[list[R]]]]()  # with the first task of each chunk
        near: Any = None
        try:
            while True:
                for chunk in itertools.islice(chunks, self._room - len(waiting)):
                    near = chunk[0]
                    waiting.append((near, self._pool.submit(_work_on, chunk)))
                if not waiting:
                    return
                near, results = waiting.popleft()
                yield from results.result()
        except BrokenProcessPool:
            raise self._died(near) from None
        finally:
            for _, results in waiting:
                results.cancel()

    def _died(self, near: T) -> UserError:
        """Kill the other processes, whose results nobody reads, and return the error."""
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        return UserError(
            f"A process that decodes images died near {self._name(near)} (out of memory, or a "
            f"file that crashes the decoder); set {self._threads_key} lower or remove the file."
        )


def start_context(preload: list[str]) -> Any:
    """Return how processes start: from a server that has imported modules, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    return context


_work: Callable[[Any], Any]  # the function that a worker process calls


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    for stop in (signal.SIGINT, signal.SIGTERM):  # the parent stops its workers
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_on(tasks: Sequence[Any]) -> list[Any]:
    return [_work(task) for task in tasks]
