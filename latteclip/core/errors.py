"""UserError, and messages for errors of libraries and of the system."""

import difflib
import errno
import shutil
from collections.abc import Iterable, Iterator

# The end of a sentence on a damaged file that the workflow wrote.
DELETE_AND_RERUN = "delete it and rerun the workflow"
FULL = {errno.ENOSPC, errno.EDQUOT}
# As libraries of Rust and C++ put it, whose errors have no number.
FULL_WORDS = ("No space left on device", "Disk quota exceeded")


MIB = 2**20
SHARED_MEMORY = "/dev/shm"
NO_ROOM = ("shared memory", "Bus error")
KILLED = ("killed by signal", "exited unexpectedly")
WORKER_KILLED = (
    "A process that loads images was killed, mostly because memory ran out; lower threads of this "
    "stage, or compute.cache_gib of a training."
)


class UserError(Exception):
    """Bad input or configuration: says what was wrong, where, and what to do.

    The command line prints it as one sentence, without a traceback, and exits with status 2.
    """


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on a name that is unknown: the nearest right one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known are: {', '.join(names)}."


def first_line(error: BaseException) -> str:
    """Kind and first line of an error of a library."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from; libraries wrap others' errors in theirs."""
    below: BaseException | None = error
    while below:
        yield below
        below = below.__cause__ or below.__context__


def full_disk(error: BaseException) -> str | None:
    """The sentence on an error that a full disk or a used-up quota is behind; None for others."""
    for one in chain(error):
        if getattr(one, "errno", None) in FULL or any(word in str(one) for word in FULL_WORDS):
            place = getattr(one, "filename", None)
            where = f"There is no space left for {place}" if place else "A disk is full"
            return (
                f"{where}; free some space (of results, resources, the hub's cache or TMPDIR) or "
                "ask for a larger quota, and rerun: what was finished is kept."
            )
    return None


def refused_by_system(error: BaseException) -> str | None:
    """The sentence on a file that the system does not let us use; None for other errors."""
    if not isinstance(error, OSError) or not error.filename or not error.strerror:
        return None
    return f"{error.filename}: {error.strerror}; correct the path, or its permissions, and rerun."


def full_output(error: OSError) -> str:
    """The sentence on a standard output that takes no more."""
    return (
        f"The standard output takes no more ({error.strerror}); free some space, or send it "
        "elsewhere."
    )


def worker_failure(error: BaseException) -> str | None:
    """One sentence for an error that comes from no room in /dev/shm, or from a process killed.

    torch tells the latter by a signal, so that it may be raised anywhere. None: another error.
    """
    said = f"{error} {error.__cause__}"
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in said:
        return None
    if any(mark in said for mark in NO_ROOM):
        total, _, free = shutil.disk_usage(SHARED_MEMORY)
        return (
            f"{SHARED_MEMORY} has {total // MIB} MiB, {free // MIB} of them free, which does not "
            "hold what the processes that load images have ready; start the container with more of "
            "it (docker run --shm-size=8g; Apptainer: --bind /dev/shm), or lower threads of this "
            "stage."
        )
    if any(mark in said for mark in KILLED):
        return WORKER_KILLED
    return None
