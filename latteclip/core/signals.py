"""Graceful shutdown on SIGTERM (a cluster's time limit, `scancel`) and Ctrl-C."""

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
GRACE = 5.0  # seconds that other processes have to end, before they are killed


class Terminated(BaseException):
    """A signal ends the process. No `except Exception` of a library can stop it."""

    def __init__(self, number: int, saved: str | None = None) -> None:
        super().__init__(number)
        self.saved = saved  # what is saved of the work; None: what `ending_in_order` says
        # Exit status of a process that the signal ended, as in shells.
        self.status = 128 + number


class Signals:
    """Receives SIGTERM and Ctrl-C: the first one counts, later ones are ignored."""

    number = 0  # number of the signal that came; 0: none
    are_deferred = False  # whoever sets it checks `number` and raises Terminated

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            if not self.are_deferred:
                raise Terminated(number)

    @contextlib.contextmanager
    def received(self, *numbers: int) -> Iterator[None]:
        """Handle signals in the body, but not one that a shell ignores in the background."""
        is_main = threading.current_thread() is threading.main_thread()
        wanted = [
            n for n in numbers if is_main and signal.getsignal(n) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, self.receive) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def ending_in_order(saved: str) -> Iterator[Signals]:
    """Let SIGTERM and Ctrl-C unwind the body, and then end the process at once.

    Threads of an engine or pending requests could otherwise delay the end beyond the grace period
    of a cluster. The log says what is `saved`. The exit status is 128 + the signal's number.
    """
    signals = Signals()
    with signals.received(signal.SIGTERM, signal.SIGINT):
        try:
            yield signals
        except Terminated as error:
            log.info(
                "Stopped before the end. %s", saved if error.saved is None else error.saved
            )
            logging.shutdown()
            _end_children()
            os._exit(error.status)


def _end_children() -> None:
    """End the processes that this one started, such as an engine with the GPU's memory."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises where a loader ends
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    until = time.monotonic() + GRACE
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
        child.kill()
        child.join(GRACE)
