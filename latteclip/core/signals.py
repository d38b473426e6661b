"""An orderly early end, as a cluster's time limit, `scancel` and Ctrl-C ask for."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)
HEARD = (signal.SIGTERM, signal.SIGINT)
GRACE = 5.0  # seconds that other processes have to end, before they are killed


class Terminated(BaseException):
    """A signal ends the process; no `except Exception` of a library keeps it from unwinding."""

    def __init__(self, number: int, kept: str | None = None) -> None:
        """kept: what remains of the work; None: what `ending_in_order` was told."""
        super().__init__(number)
        self.number, self.kept = number, kept

    @property
    def status(self) -> int:
        """The exit status of a process that the signal ended, as shells have it."""
        return 128 + self.number


class Signals:
    """SIGTERM and Ctrl-C as they come: the first one counts, later ones are ignored."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came; 0: none
        self._held = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let no signal unwind the body, which checks `number` and raises Terminated itself."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if not self.number:
            self.number = number
            if not self._held:
                raise Terminated(number)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM unwind the body, as Ctrl-C does, so that its temporary files go.

    Raises:
        Terminated: it came.
    """
    if not _is_heard(signal.SIGTERM):
        yield
        return
    before = signal.signal(signal.SIGTERM, Signals().receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_heard(number: int) -> bool:
    """Whether a signal reaches this thread, and no shell has it ignored, as in the background."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(number) is not signal.SIG_IGN


@contextlib.contextmanager
def ending_in_order(kept: str) -> Iterator[Signals]:
    """Let SIGTERM and Ctrl-C unwind the body, and then end the process at once.

    Threads of an engine or pending requests would otherwise delay the end beyond the seconds that a
    cluster grants. The exit status is 128 + the signal's number.

    Args:
        kept: what remains of the work, for the log.
    """
    signals = Signals()
    before = {
        number: signal.signal(number, signals.receive) for number in HEARD if _is_heard(number)
    }
    try:
        yield signals
    except Terminated as error:
        log.info("Stopped before the end. %s", kept if error.kept is None else error.kept)
        logging.shutdown()
        _end_children()
        os._exit(error.status)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_children() -> None:
    """End the processes that this one started: an engine among them holds the GPU's memory."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    until = time.monotonic() + GRACE
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
    for child in multiprocessing.active_children():
        child.kill()
        child.join(GRACE)
