"""Worker processes of a DataLoader: where their batches lie, and how they end.

Batches are handed over in /dev/shm, which containers keep small.

Letters: B batch.
"""

import atexit
import logging
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

from latteclip.core import worker_errors
from latteclip.core.errors import UserError

T = TypeVar("T")
log = logging.getLogger(__name__)
SHARE = 1 / 4  # of what is free in /dev/shm, for the batches of a job
MIB = 2**20


def bounded(wanted: int, batch_bytes: float) -> tuple[int, int]:
    """Return how many workers to start, and how many batches each prepares ahead of the model.

    With them, and the batch that the model reads, a job takes at most `SHARE` of what is free in
    /dev/shm. Where not even two batches fit into that, there are no workers.
    """
    free = shutil.disk_usage(worker_errors.SHARED_MEMORY).free
    room = int(free * SHARE / batch_bytes) - 1 if batch_bytes else 2 * wanted
    if 2 * wanted <= room:
        return wanted, 2
    workers = max(0, min(wanted, room))
    if workers < wanted:
        log.warning(
            "Images are loaded by %d processes, not by %d: %s has %d MiB free, and a batch takes "
            "%d MiB. A container gets more of it by docker run --shm-size=8g (Apptainer: --bind "
            "/dev/shm).",
            *(workers or 1, wanted, worker_errors.SHARED_MEMORY, free // MIB, batch_bytes / MIB),
        )
    return workers, 1


class Shared:
    """Makes a batch of samples, in shared memory.

    torch moves it there itself, but in a thread of the worker: where there is no room, the batch is
    lost and the training waits for it for ever. Here the worker fails and says so.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        """collate: makes a batch of B samples."""
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        batch = self._collate(samples)
        for tensor in _tensors(batch):
            tensor.share_memory_()
        return batch


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    """Those in a batch, however it is made up of lists and tuples."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)


def watched(batches: Iterable[T]) -> Iterator[T]:
    """The batches of a DataLoader.

    Raises:
        UserError: what a worker raised, or its trouble with /dev/shm.
    """
    try:
        yield from batches
    except UserError as error:  # torch puts the worker's traceback before the sentence
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
    except RuntimeError as error:
        if said := worker_errors.in_words(error):
            raise UserError(said) from None
        raise


def _end() -> None:
    """End the workers that an error has left; multiprocessing would wait for them.

    They do not hear its SIGTERM, for a cluster sends that to every process of a job.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


atexit.register(_end)  # before what multiprocessing itself does at the exit
