"""Worker processes of a DataLoader: where their batches lie, and how they end.

Batches are handed over in /dev/shm, which containers keep small.

Letters: B batch.
"""

import atexit
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from latteclip.core.errors import UserError

T = TypeVar("T")
MIB = 2**20
SHARED_MEMORY = "/dev/shm"
LACKS = ("shared memory", "Bus error")  # what torch says where there is no room for a batch


class Shared:
    """Makes a batch of samples, in shared memory.

    torch moves it there itself, but in a thread of the worker: where there is no room, the batch is
    lost and the training waits for it for ever. Here the worker fails and says so.
    """

    def __init__(self, collate: Callable[[list[Any]], Sequence[torch.Tensor]]) -> None:
        """collate: makes a batch of B samples."""
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Sequence[torch.Tensor]:
        batch = self._collate(samples)
        for tensor in batch:
            tensor.share_memory_()
        return batch


def watched(batches: Iterable[T]) -> Iterator[T]:
    """The batches of a DataLoader.

    Raises:
        UserError: its workers have no room in /dev/shm, or one of them was killed.
    """
    try:
        yield from batches
    except RuntimeError as error:
        if any(mark in str(error) for mark in LACKS):
            raise UserError(_no_room()) from None
        if "DataLoader worker" in str(error) and "Caught" not in str(error):
            raise UserError(
                "A process that loads images was killed, mostly because memory ran out; lower "
                "threads of this stage, or compute.cache_gib of a training."
            ) from None
        raise


def _end() -> None:
    """End the workers that an error has left; multiprocessing would wait for them.

    They do not hear its SIGTERM, for a cluster sends that to every process of a job.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


atexit.register(_end)  # before what multiprocessing itself does at the exit


def _no_room() -> str:
    total, _, free = shutil.disk_usage(SHARED_MEMORY)
    return (
        f"{SHARED_MEMORY} has {total // MIB} MiB, {free // MIB} of them free, which does not hold "
        "what the processes that load images have ready; start the container with more of it "
        "(docker run --shm-size=8g; Apptainer: --bind /dev/shm), or lower threads of this stage."
    )
