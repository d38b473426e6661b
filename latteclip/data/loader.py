"""Load image files as batches of tensors, by processes beside a GPU and threads beside a CPU.

Worker processes hand their batches over in /dev/shm, which containers make small.
"""

import atexit
import itertools
import logging
import math
import multiprocessing
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from latteclip.data.images import open_rgb

log = logging.getLogger(__name__)
PART = 64 * MIB  # bytes of a part of a batch that a worker makes, at most
SHARE = 1 / 4  # share of the free space in /dev/shm for the parts of a job
MAX_PARTS = 4096 * MIB  # bytes of the parts of a job, however large /dev/shm is
Transform = Callable[[Image.Image], torch.Tensor]
T = TypeVar("T")


class ImageFiles(Dataset[tuple[Any, torch.Tensor]]):
    """N image files under one transform. An item is the index and the image's pixels."""

    def __init__(self, paths: Sequence[str], transform: Transform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        return index, self.transform(open_rgb(self.paths[index]))


def batches(
    files: ImageFiles, keys: Iterable[Sequence[int]], device: torch.device, threads: int
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield keys [B] on the CPU and images [B, 3, H, W] on a device, decoded ahead of the model."""
    load = by_processes if device.type == "cuda" else _by_threads
    yield from load(files, keys, device, threads)


def by_processes(
    files: ImageFiles, keys: Iterable[Sequence[int]], device: torch.device, threads: int
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield `batches` that processes beside a GPU load, in parts of bounded memory."""
    item_bytes = files.transform(Image.new("RGB", (64, 64))).nbytes
    is_gpu = device.type == "cuda"
    ready = loader(files, keys, workers=threads, pinned=is_gpu, item_bytes=item_bytes)
    parts: list[Any] = []
    sent: list[torch.Tensor] = []
    for (some_keys, images), is_last in watched(ready):
        parts.append(some_keys)
        sent.append(images.to(device, non_blocking=True))
        if is_last:
            yield joined(parts), torch.cat(sent)
            parts = []
            sent = []


def joined(parts: Sequence[Any]) -> Any:
    """Return the collated keys of a batch from those of its parts: tensors, texts, or lists."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat([*parts])
    if isinstance(parts[0][0], str):
        return [*itertools.chain(*parts)]
    return [joined(each) for each in zip(*parts, strict=True)]


def _by_threads(
    files: ImageFiles, keys: Iterable[Sequence[int]], device: torch.device, threads: int
) -> Iterator[tuple[Any, torch.Tensor]]:
    # torch runs each transform in one thread. With more, OpenMP would have more threads than cores,
    # and those of the model would sleep while they wait for each other.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    ahead: list[Future[Any]] = []
    try:
        for indices in itertools.chain(keys, [()]):
            now = ahead
            ahead = [pool.submit(files.__getitem__, index) for index in indices]
            if now:
                some_keys, images = default_collate([sample.result() for sample in now])
                yield some_keys, images.to(device)
    finally:
        pool.shutdown(cancel_futures=True)


def loader(
    files: Dataset[Any],
    keys: Iterable[Sequence[Any]],
    *,
    workers: int,
    pinned: bool,
    item_bytes: float = 0,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> Iterator[tuple[Any, bool]]:
    """Yield batches in the order of their keys, in parts, each with whether it ends a batch.

    Send a part to the device before the next one: those ahead of it fill the memory.

    Args:
        workers: maximum number of processes, which changes the speed alone. 0: this process loads.
        pinned: whether a GPU copies parts without the CPU.
        item_bytes: mean size of an item, which bounds the parts and the workers (`bounded`).
    """
    ahead = None
    most = sys.maxsize
    if not can_fork():
        workers = 0
    if workers and item_bytes:
        workers, ahead, most = bounded(workers, item_bytes)
    # Whether each part on its way is the last one of its batch.
    are_last: deque[bool] = deque()

    def parts() -> Iterator[Sequence[Any]]:
        for batch in keys:
            n = max(1, math.ceil(len(batch) / most))
            for i in range(n):
                are_last.append(i == n - 1)
                yield batch[len(batch) * i // n : len(batch) * (i + 1) // n]

    def collate_shared(samples: Any) -> Any:
        return _shared(collate(samples))

    loaded = DataLoader(
        files,
        batch_sampler=parts(),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        multiprocessing_context="fork" if workers else None,  # they share the `ImageCache`
        pin_memory=pinned,
        collate_fn=collate_shared if workers else collate,
        generator=torch.Generator(),  # or it would draw a number that a resumed run lacks
        worker_init_fn=_leave_signals_to_parent,
    )
    for part in loaded:
        yield part, are_last.popleft()


def can_fork() -> bool:
    """Return whether processes that load images may be forked, and find shared memory."""
    methods = multiprocessing.get_all_start_methods()
    return "fork" in methods and Path(SHARED_MEMORY).is_dir()


def _leave_signals_to_parent(_worker: int) -> None:
    """Ignore signals, which a cluster sends to every process of a job: the parent decides."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def in_order(n: int, batch_size: int) -> list[range]:
    """Return all N indices once, in order, in batches of at most `batch_size`."""
    return [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]


def bounded(wanted: int, item_bytes: float) -> tuple[int, int, int]:
    """Return the numbers of workers, perhaps none, of parts that each prepares ahead, and of items.

    With the part that the model takes, all parts have at most `MAX_PARTS` bytes, and `SHARE` of the
    free space in /dev/shm. A part has as many items as fit into `PART` and leave each worker two
    parts.
    """
    free = shutil.disk_usage(SHARED_MEMORY).free
    room = min(MAX_PARTS, free * SHARE)
    items = max(1, int(min(PART, room / (2 * wanted + 1)) / item_bytes))
    parts = int(room / (items * item_bytes)) - 1
    workers = max(0, min(wanted, parts))
    if not workers:  # this process needs no shared memory
        items = max(1, int(PART / item_bytes))
    if workers < wanted:
        log.warning(
            "%s has %d MiB free, so only %d of %d processes load images, which need %d MiB each. "
            "docker run --shm-size=8g (Apptainer: --bind /dev/shm) gives a container more.",
            SHARED_MEMORY,
            free // MIB,
            workers or 1,
            wanted,
            item_bytes / MIB,
        )
    return workers, 2 if 2 * wanted <= parts else 1, items


def _shared(batch: Any) -> Any:
    """Move the tensors of a batch to shared memory, and return it.

    Without it torch does so in a thread, where a full /dev/shm makes the training wait without end.
    """
    if isinstance(batch, torch.Tensor):
        batch.share_memory_()
    elif isinstance(batch, list | tuple):
        for part in batch:
            _shared(part)
    return batch


def watched(batches: Iterable[T]) -> Iterator[T]:
    """Yield batches, or raise UserError if a worker raised it, died or found /dev/shm full."""
    try:
        yield from batches
    except UserError as error:  # torch puts the worker's traceback before the sentence
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
