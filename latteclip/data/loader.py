"""Image files to RGB pictures and batches of tensors.

Letters: N images, B batch, H x W the model's input size.
"""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from latteclip.data.images import open_rgb
from latteclip.data.loader_workers import Shared, watched

Transform = Callable[[Image.Image], torch.Tensor]


class ImageFiles(Dataset[tuple[int, torch.Tensor]]):
    """N image files under one transform."""

    def __init__(self, paths: Sequence[str], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, self.transform(open_rgb(self.paths[index]))


def batches(
    files: ImageFiles, keys: Iterable[Sequence[int]], device: torch.device, threads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode ahead of the model.

    Yields:
        Indices [B] on the CPU, and images [B, 3, H, W] on `device`.

    Args:
        files: what to read.
        keys: the indices of each batch, in order.
        device: where the images are wanted.
        threads: CPU threads of this job: worker processes beside a GPU. Without a GPU the model
            itself keeps the threads busy, and images are decoded between its batches.
    """
    on_gpu = device.type == "cuda"
    ready = loader(files, keys, workers=threads if on_gpu else 0, pinned=on_gpu)
    for indices, images in watched(ready):
        yield indices, images.to(device, non_blocking=True)


def loader(
    files: Dataset[Any],
    keys: Iterable[Sequence[Any]],
    *,
    workers: int,
    pinned: bool,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """A loader of whole batches; the number of worker processes changes nothing but its speed.

    Args:
        files: what to read.
        keys: of the items of each batch, in order.
        workers: how many processes; 0: none but this one.
        pinned: whether batches are to lie in memory that a GPU copies from without the CPU.
        collate: makes a batch of its items; by default their tensors are stacked.
    """
    return DataLoader(
        files,
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # they share the `KeptPictures`
        pin_memory=pinned,
        collate_fn=Shared(collate or default_collate) if workers else collate,
        generator=torch.Generator(),  # or it would draw a number that a resumed run lacks
        worker_init_fn=_leave_signals_to_parent,
    )


def _leave_signals_to_parent(worker: int) -> None:
    """A cluster signals every process of a job, but the parent needs its workers to the end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def in_order(n: int, batch_size: int) -> list[range]:
    """All N indices once, in order, in batches of at most `batch_size`."""
    return [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
