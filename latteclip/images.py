"""Image files to RGB pictures and batches of tensors.

Letters: N images, B batch, H x W the model's input size.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from latteclip.pictures import open_rgb

Transform = Callable[[Image.Image], torch.Tensor]


class ImageFiles(Dataset[tuple[int, torch.Tensor]]):
    """N image files under one transform; a key is (epoch, index).

    Random transforms draw from a generator seeded by (seed, epoch, index), so that a sample does
    not depend on the number of worker processes nor on the order in which samples are made.
    """

    def __init__(self, paths: Sequence[str], transform: Transform, seed: int | None = None) -> None:
        self.paths, self.transform, self.seed = list(paths), transform, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, torch.Tensor]:
        epoch, index = key
        image = open_rgb(self.paths[index])
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
    files: ImageFiles, keys: Sequence[Sequence[tuple[int, int]]], device: torch.device, threads: int
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
    loader = DataLoader(
        files,
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=threads if on_gpu else 0,
        pin_memory=on_gpu,
        persistent_workers=on_gpu,
    )
    for indices, images in loader:
        yield indices, images.to(device, non_blocking=True)


def in_order(n: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Keys of all N images once, in order, in batches of at most `batch_size`."""
    return [
        [(0, index) for index in range(start, min(start + batch_size, n))]
        for start in range(0, n, batch_size)
    ]
