"""Image files to RGB pictures and batches of tensors.

Letters: N images, B batch, H x W the model's input size.
"""

import logging
import mmap
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from latteclip.data.images import open_rgb
from latteclip.data.loader_workers import Shared, watched

log = logging.getLogger(__name__)
Transform = Callable[[Image.Image], torch.Tensor]


class DecodedImages:
    """Decoded pictures kept in memory that forked worker processes share.

    A worker may find a picture that another one decoded. Memory is taken as pictures come.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """sizes: bytes of each of the N pictures, width * height * 3."""
        self.ends = np.cumsum(sizes, dtype=np.int64)  # [N]
        self.pixels = np.frombuffer(mmap.mmap(-1, int(self.ends[-1])), np.uint8)
        shapes = mmap.mmap(-1, len(sizes) * 8)
        self.shapes = np.frombuffer(shapes, np.int32).reshape(-1, 2)  # height and width, 0: not yet

    def open(self, index: int, path: str | Path) -> Image.Image:
        """`open_rgb(path)`, from memory where picture `index` was opened before."""
        height, width = self.shapes[index]
        end = self.ends[index]
        if height:
            flat = self.pixels[end - height * width * 3 : end]
            return Image.fromarray(flat.reshape(height, width, 3))
        image = open_rgb(path)
        pixels = np.asarray(image)
        if end - pixels.size >= (self.ends[index - 1] if index else 0):
            self.pixels[end - pixels.size : end] = pixels.reshape(-1)
            self.shapes[index] = pixels.shape[:2]  # last: it says that the pixels are there
        return image


def decoded_images(sizes: Sequence[int], limit: float) -> DecodedImages | None:
    """Memory for decoded pictures, where all of them fit into `limit` bytes."""
    fits = sum(sizes) <= limit
    log.info(
        "Decoded, the images take %.1f GiB and are %s.",
        sum(sizes) / 2**30,
        "kept in memory" if fits else "decoded anew in each epoch (see compute.cache_gib)",
    )
    return DecodedImages(sizes) if fits else None


class ImageFiles(Dataset[tuple[int, torch.Tensor]]):
    """N image files under one transform; a key is (epoch, index).

    Random transforms draw from a generator seeded by (seed, epoch, index), so that a sample does
    not depend on the number of worker processes nor on the order in which samples are made.
    """

    def __init__(
        self,
        paths: Sequence[str],
        transform: Transform,
        seed: int | None = None,
        decoded: DecodedImages | None = None,
    ) -> None:
        """seed: None for a transform that draws nothing; decoded: where pictures are kept."""
        self.paths, self.transform, self.seed = list(paths), transform, seed
        self.decoded = decoded

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, torch.Tensor]:
        epoch, index = key
        path = self.paths[index]
        image = self.decoded.open(index, path) if self.decoded else open_rgb(path)
        if self.seed is None:
            return index, self.transform(image)
        outer, torch_outer = random.getstate(), torch.get_rng_state()
        mixed = hash((self.seed, epoch, index)) % 2**63
        torch.default_generator.manual_seed(mixed)
        random.seed(mixed)  # open_clip decides about jitter and greyscale with `random`
        try:
            tensor = self.transform(image)
        finally:
            random.setstate(outer)
            torch.set_rng_state(torch_outer)
        return index, tensor


def batches(
    files: ImageFiles, keys: Iterable[Sequence[tuple[int, int]]], device: torch.device, threads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode ahead of the model.

    Yields:
        Indices [B] on the CPU, and images [B, 3, H, W] on `device`.

    Args:
        files: what to read.
        keys: the (epoch, index) keys of each batch, in order.
        threads: CPU threads of this job: worker processes beside a GPU. Without a GPU the model
            itself keeps the threads busy, and images are decoded between its batches.
    """
    on_gpu = device.type == "cuda"
    ready = loader(files, keys, workers=threads if on_gpu else 0, pinned=on_gpu)
    for indices, images in watched(ready):
        yield indices, images.to(device, non_blocking=True)


def loader(
    files: ImageFiles, keys: Iterable[Sequence[tuple[int, int]]], *, workers: int, pinned: bool
) -> DataLoader[tuple[int, torch.Tensor]]:
    """A loader of whole batches; the number of worker processes changes nothing but its speed."""
    return DataLoader(
        files,
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # they share `DecodedImages`
        pin_memory=pinned,
        collate_fn=Shared(default_collate) if workers else None,
        generator=torch.Generator(),  # or it would draw a number that a resumed run lacks
        worker_init_fn=_leave_signals_to_parent,
    )


def _leave_signals_to_parent(worker: int) -> None:
    """A cluster signals every process of a job, but the parent needs its workers to the end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def in_order(n: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Keys of all N images once, in order, in batches of at most `batch_size`."""
    return [
        [(0, index) for index in range(start, min(start + batch_size, n))]
        for start in range(0, n, batch_size)
    ]
