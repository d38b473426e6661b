"""Ending early in order: what a cluster's time limit, `scancel` and Ctrl-C ask for."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)


class Terminated(BaseException):
    """SIGTERM; no `except Exception` of a library keeps it from unwinding."""


@contextlib.contextmanager
def ending_in_order(kept: str) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C unwind the body, and then end the process at once.

    Threads of an engine or requests on their way would otherwise hold it up beyond the seconds that
    a cluster grants. The exit status is 128 + the signal's number.

    Args:
        kept: said in the log: what of the work remains.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except (Terminated, KeyboardInterrupt) as error:
        log.error("Stopped before the end. %s", kept)
        logging.shutdown()
        for child in multiprocessing.active_children():  # an engine that holds a GPU
            child.terminate()
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        os._exit(128 + number)
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the unwinding
    raise Terminated
