"""What ends a command: UserError, errors of libraries and of the system, and signals."""

import contextlib
import difflib
import errno
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType

log = logging.getLogger(__name__)

# The end of a sentence on a damaged file that a command or the workflow wrote.
DELETE = "delete it"
DELETE_AND_RERUN = "delete it and rerun the workflow"
CORES = "--cores all"  # as messages, pages and documents run the workflow
FULL = {errno.ENOSPC, errno.EDQUOT}
# As libraries of Rust and C++ put it, whose errors have no number.
FULL_WORDS = ("No space left on device", "Disk quota exceeded")
MIB = 2**20
GIB = 2**30
SHARED_MEMORY = "/dev/shm"
WORKER_KILLED = (
    f"A process that loads images was killed, mostly because memory or {SHARED_MEMORY} is full; "
    "lower threads of this stage, or start a container with more of them (docker run "
    "--shm-size=8g; Apptainer: --bind /dev/shm)."
)
# As torch puts it; of a bus error, it names the one cause that it knows.
WORKER_WORDS = (
    "shared memory",
    "Bus error",
    "killed by signal",
    "exited unexpectedly",
)

# Seconds that other processes have to end after a signal, before they are killed.
GRACE = 5.0


class UserError(Exception):
    """A user's mistake: one sentence that names it, its place and the remedy."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence on an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are: {', '.join(names) or 'none'}."


def first_line(error: BaseException) -> str:
    """Return the type and the first line of a library's error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: libraries wrap the errors of others."""
    cause: BaseException | None = error
    while cause:
        yield cause
        cause = cause.__cause__ or cause.__context__


def full_disk(error: BaseException) -> str | None:
    """Return the message for an error due to a full disk or quota. None: it is another error."""
    for cause in chain(error):
        if getattr(cause, "errno", None) in FULL or any(
            words in str(cause) for words in FULL_WORDS
        ):
            place = getattr(cause, "filename", None)
            return (
                f"The disk{f' of {place}' if place else ''} is full; free some space (of results, "
                "resources, the hub's cache or TMPDIR) or ask for a larger quota, and rerun: "
                "what is written already is not made again."
            )
    return None


def refused_by_system(error: BaseException) -> str | None:
    """Return the message for a file that the system refuses. None: it is another error."""
    if not isinstance(error, OSError) or not error.filename or not error.strerror:
        return None
    path = error.filename2 or error.filename
    return f"{path}: {error.strerror}; correct the path, or its permissions, and rerun."


def worker_failure(error: BaseException) -> str | None:
    """Return the message for a full /dev/shm or a killed worker. None: it is another error."""
    text = f"{error} {error.__cause__}"
    is_worker = isinstance(error, RuntimeError) and "DataLoader worker" in text
    is_killed = is_worker and any(words in text for words in WORKER_WORDS)
    return WORKER_KILLED if is_killed else None


class Terminated(BaseException):
    """A signal ends the process. No `except Exception` of a library can stop it."""

    def __init__(self, number: int, saved: str | None = None) -> None:
        super().__init__(number)
        # What is saved of the work; None: what `ending_in_order` says.
        self.saved = saved
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
            number
            for number in numbers
            if is_main and signal.getsignal(number) is not signal.SIG_IGN
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
            kept = saved if error.saved is None else error.saved
            notes = getattr(error, "__notes__", [])
            log.info("Stopped before the end. %s", " ".join([kept, *notes]))
            logging.shutdown()
            _end_children()
            os._exit(error.status)


def _end_children() -> None:
    """End the processes that this one started, such as an engine with the GPU's memory."""
    if threading.current_thread() is threading.main_thread():
        # Torch's raises where a loader ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    until = time.monotonic() + GRACE
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
        child.kill()
        child.join(GRACE)
