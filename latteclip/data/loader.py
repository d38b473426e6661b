"""Load image files as batches of tensors, by worker processes.

They hand images over in /dev/shm, which containers make small.
"""

import atexit
import itertools
import logging
import multiprocessing
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from latteclip.core.errors import (
    MIB,
    SHARED_MEMORY,
    WORKER_KILLED,
    UserError,
    worker_failure,
)
from latteclip.data.images import leave_signals_to_parent, open_rgb

log = logging.getLogger(__name__)
# Bytes of the part of a batch that a process loads at once, or one image.
PART = 4 * MIB
AHEAD = 2  # parts that a process loads ahead
SHARE = 1 / 4  # share of the free space in /dev/shm for the parts of a job
Transform = Callable[[Image.Image], torch.Tensor]
Images = Dataset[tuple[Any, torch.Tensor]]  # keys and pixels, by keys
Batch = tuple[list[Any], torch.Tensor]
T = TypeVar("T")


@dataclass
class ImageFiles(Images):
    """N image files under one transform. An item is its key, here the index, and the pixels."""

    paths: Sequence[str]
    transform: Transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        return index, self.transform(open_rgb(self.paths[index]))


def batches(
    files: Images,
    keys: Iterable[Sequence[Any]],
    device: torch.device,
    threads: int,
) -> Iterator[Batch]:
    """Yield B keys and images [B, 3, H, W] on a device, decoded ahead of the model.

    At most `threads` processes load them, and their number changes the speed alone. A part of a
    batch goes to the device before the next one, for those ahead fill the memory.
    """
    waiting = iter(keys)
    first = next(waiting, None)
    if first is None:
        return
    is_gpu = device.type == "cuda"
    item_bytes = files[first[0]][1].nbytes
    size = max(1, PART // item_bytes)  # images of a part
    workers = room_for(threads, size * item_bytes) if can_fork() else 0
    lengths: deque[int] = deque()  # parts of each batch on its way

    def parts() -> Iterator[Sequence[Any]]:
        for batch in itertools.chain([first], waiting):
            starts = range(0, len(batch), size)
            lengths.append(len(starts))
            yield from (batch[start : start + size] for start in starts)

    loaded = iter(
        DataLoader(
            files,
            batch_sampler=parts(),  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            multiprocessing_context="fork" if workers else None,
            pin_memory=is_gpu,
            collate_fn=_collate,
            # Or it would draw a number that a resumed run lacks.
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_parent,
        )
    )
    batch_keys: list[Any] = []
    sent: list[torch.Tensor] = []
    for part_keys, images in watched(loaded):
        batch_keys += part_keys
        sent.append(images.to(device, non_blocking=is_gpu))
        if len(sent) == lengths[0]:
            lengths.popleft()
            yield batch_keys, torch.cat(sent)
            batch_keys = []
            sent = []


def _collate(samples: Sequence[tuple[Any, torch.Tensor]]) -> Batch:
    """Return a part of a batch, in shared memory if a worker process loads it.

    Put there later, by torch in a thread, a full /dev/shm would make the training wait without end.
    """
    keys, images = zip(*samples, strict=True)
    return list(keys), default_collate(list(images))


def can_fork() -> bool:
    """Return whether processes that load images may be forked, and find shared memory."""
    has_fork = "fork" in multiprocessing.get_all_start_methods()
    # Which may have no processes.
    is_daemon = multiprocessing.current_process().daemon
    return has_fork and not is_daemon and Path(SHARED_MEMORY).is_dir()


def room_for(wanted: int, part_bytes: int) -> int:
    """Return how many processes, perhaps none, find room in /dev/shm for their parts."""
    free = shutil.disk_usage(SHARED_MEMORY).free
    each = (AHEAD + 1) * part_bytes
    workers = min(wanted, int(free * SHARE / each))
    if workers < wanted:
        log.warning(
            "%s is nearly full: %d of %d processes load images. docker run --shm-size=8g "
            "(Apptainer: --bind /dev/shm) gives a container more.",
            *(SHARED_MEMORY, workers, wanted),
        )
    return workers


def watched(batches: Iterable[T]) -> Iterator[T]:
    """Yield batches, or raise UserError if a worker raised it, died or found /dev/shm full."""
    try:
        yield from batches
    # Torch puts the worker's traceback before the sentence.
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
    # The socket of a killed worker that does not count as dead.
    except (EOFError, ConnectionError):
        raise UserError(WORKER_KILLED) from None
    except RuntimeError as error:
        if sentence := worker_failure(error):
            raise UserError(sentence) from None
        raise


@atexit.register  # before what multiprocessing itself does at the exit
def _end() -> None:
    """Kill the workers that an error has left, for they ignore the SIGTERM of multiprocessing."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
