"""Worker processes of a DataLoader: where their batches lie, and how they end.

Batches are handed over in /dev/shm, which containers keep small.

Letters: B batch.
"""

import atexit
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from latteclip.core import worker_errors
from latteclip.core.errors import UserError

T = TypeVar("T")


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
