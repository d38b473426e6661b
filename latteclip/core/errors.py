"""UserError, and messages for errors of libraries and of the system."""

import difflib
import errno
from collections.abc import Iterable, Iterator

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
WORKER_WORDS = ("shared memory", "Bus error", "killed by signal", "exited unexpectedly")


class UserError(Exception):
    """A user's mistake: one sentence that names it, its place and the remedy."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence on an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known are: {', '.join(names)}."


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
            w in str(cause) for w in FULL_WORDS
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
    return WORKER_KILLED if is_worker and any(w in text for w in WORKER_WORDS) else None
