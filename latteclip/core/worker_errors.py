"""What torch says of the processes that load images, in words that help."""

import shutil

MIB = 2**20
SHARED_MEMORY = "/dev/shm"
NO_ROOM = ("shared memory", "Bus error")
KILLED = ("killed by signal", "exited unexpectedly")


def in_words(error: BaseException) -> str | None:
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
        return (
            "A process that loads images was killed, mostly because memory ran out; lower threads "
            "of this stage, or compute.cache_gib of a training."
        )
    return None
