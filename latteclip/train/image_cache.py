"""Training images: decoded, reduced to the size that training needs, cached, and batched.

Letters: N images, B batch, K random numbers of an image, h x w an image's size.
"""

import logging
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from latteclip.clip import model as clips
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import existing
from latteclip.data.images import open_rgb
from latteclip.data.loader import loader, watched
from latteclip.train import augment, data, parallel
from latteclip.train.settings import FinetuneSettings

log = logging.getLogger(__name__)
REDUCING_GAP = 3.0  # at which Pillow's quick resizing equals the exact one, by its documentation
FREE = 2  # times the room on disk that must be free before images are cached there


def cached_sizes(sizes: np.ndarray, side: int) -> np.ndarray:
    """Return widths and heights [N, 2] after `resize_for_cache`, from those before."""
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    long = np.minimum(long, np.ceil(short * augment.WIDEST))
    scale = np.minimum(1.0, side / short)
    short, long = (np.maximum(1, np.round(length * scale)) for length in (short, long))
    is_wide = sizes[:, 0] > sizes[:, 1]
    return np.where(is_wide, [long, short], [short, long]).T.astype(np.int64)


def resize_for_cache(path: str, side: int) -> np.ndarray:
    """Return an image as uint8 [h, w, 3], its shorter side at most `side`.

    The ends of a very long image, which no crop shows, are cut off. Training sees all images like
    this, whether they are cached or not.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    image = open_rgb(path, min_side=side)
    width, height = cached_sizes(np.array([image.size]), side)[0].tolist()
    if (width, height) != image.size:
        box = _middle(image.size, (width, height))
        image = image.resize(
            (width, height), Image.Resampling.BICUBIC, box, reducing_gap=REDUCING_GAP
        )
    return np.asarray(image)


def _middle(size: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the largest box of a shape in the middle of an image.

    Rounding never puts a corner outside the image, which Pillow would refuse.
    """
    scale = min(length / wanted for length, wanted in zip(size, shape, strict=True))
    left, top = (
        max(0.0, (length - wanted * scale) / 2) for length, wanted in zip(size, shape, strict=True)
    )
    return left, top, size[0] - left, size[1] - top


class ImageCache:
    """Images that forked worker processes share: in memory first, the others in a file.

    Memory and disk are taken as images come. The file has no name and goes with the processes.
    """

    def __init__(self, sizes: np.ndarray, in_memory: int, folder: str | Path | None) -> None:
        """Start empty.

        Args:
            sizes: [N] bytes of each image, height * width * 3.
            in_memory: bytes of the images in memory.
            folder: on whose disk the file is. None: the other images are not cached.
        """
        self.ends = np.cumsum(sizes, dtype=np.int64)  # [N]
        self.n_in_memory = int(np.searchsorted(self.ends, in_memory, side="right"))
        size = int(self.ends[self.n_in_memory - 1]) if self.n_in_memory else 0
        self.pixels = np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)
        # [N, 2] height and width, 0 until the image is cached.
        self.shapes = np.frombuffer(mmap.mmap(-1, len(sizes) * 8), np.int32).reshape(-1, 2)
        self._file = tempfile.TemporaryFile(dir=existing(folder)) if folder else None  # noqa: SIM115

    def get(self, index: int) -> np.ndarray | None:
        """Return image `index` [h, w, 3], or None if it is not cached."""
        height, width = self.shapes[index].tolist()
        if not height:
            return None
        start, size = self._start(index), height * width * 3
        if index < self.n_in_memory:
            flat = self.pixels[start : start + size]
        else:
            assert self._file is not None
            flat = np.frombuffer(os.pread(self._file.fileno(), size, start), np.uint8)
        return flat.reshape(height, width, 3)

    def put(self, index: int, image: np.ndarray) -> None:
        """Cache image `index` [h, w, 3] if there is room for it."""
        start = self._start(index)
        if start + image.size > self.ends[index]:
            return
        if index < self.n_in_memory:
            self.pixels[start : start + image.size] = image.reshape(-1)
        elif not self._is_written(image.tobytes(), start):
            return
        # The height comes last: it marks the image as cached.
        self.shapes[index, 1] = image.shape[1]
        self.shapes[index, 0] = image.shape[0]

    def _start(self, index: int) -> int:
        return int(self.ends[index - 1]) if index else 0

    def _is_written(self, content: bytes, start: int) -> bool:
        """Write into the file; return whether it took all of it."""
        if self._file is None:
            return False
        try:
            return os.pwrite(self._file.fileno(), content, start) == len(content)
        except OSError:  # the disk is full, for example
            return False


def open_cache(
    sizes: np.ndarray, side: int, in_memory: float, folder: str | Path, processes: int = 1
) -> ImageCache:
    """Return a cache for images of the given widths and heights.

    Args:
        sizes: [N, 2] width and height of each image before `resize_for_cache`.
        side: see `resize_for_cache`.
        in_memory: bytes in memory.
        folder: on whose disk the others are cached, if it has FREE times as much room.
        processes: how many processes of this training have a cache.
    """
    # A JPEG that was decoded at an eighth may be a pixel longer than its full size says.
    taken = 3 * (cached_sizes(sizes, side) + 1).prod(axis=1)
    beyond = taken.sum() - in_memory
    if beyond <= 0:
        place, where = None, "are cached in memory"
    else:
        fits = FREE * processes * beyond <= shutil.disk_usage(existing(folder)).free
        place = folder if fits else None
        rest = f"the others on the disk of {folder}" if fits else "the others are decoded each time"
        where = f"are cached in memory up to compute.cache_gib ({in_memory / 2**30:.1f}), {rest}"
    log.info("After resizing the images take %.1f GiB: they %s.", taken.sum() / 2**30, where)
    return ImageCache(taken, int(in_memory), place)


class TrainingImages(Dataset[tuple[int, np.ndarray, np.ndarray]]):
    """N images. A key is (number of the pass over all of them, index).

    An item is the index, the random numbers [K] of the image's transform in this pass, and its
    pixels. They depend only on the seed, the pass and the image: not on worker processes, the
    order, or what is cached.
    """

    def __init__(self, paths: Sequence[str], side: int, seed: int, cache: ImageCache) -> None:
        """See `resize_for_cache` about `side`."""
        self.paths, self.side, self.seed, self.cache = paths, side, seed, cache

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, np.ndarray, np.ndarray]:
        number, index = key
        image = self.cache.get(index)
        if image is None:
            try:
                image = resize_for_cache(self.paths[index], self.side)
            except (ValueError, ArithmeticError) as error:
                raise UserError(
                    f"Image {self.paths[index]} cannot be scaled down for training "
                    f"({first_line(error)}); remove it, and report this as a bug."
                ) from error
            self.cache.put(index, image)
        return index, augment.draw(self.seed, number, index), image


def training_images(
    clip: clips.Clip, inputs: data.TrainingData, settings: FinetuneSettings, folder: str, seed: int
) -> TrainingImages:
    """Return the images of a training, cached in memory and on the disk of a folder."""
    processes = parallel.size()
    side = augment.Augmentation.of(clip).cached_side
    in_memory = settings.compute.cache_gib * 2**30 / processes
    cache = open_cache(inputs.sizes, side, in_memory, folder, processes)
    return TrainingImages(inputs.paths, side, seed, cache)


def batches(
    images: TrainingImages,
    keys: Iterable[Sequence[tuple[int, int]]],
    transform: augment.Augmentation,
    device: torch.device,
    threads: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode ahead of the model, and transform whole batches on its device.

    Yields:
        Indices [B] on the CPU, and transformed images [B, 3, H, W] on `device`.

    Args:
        images: what to read.
        keys: of each batch, in order.
        transform: of the images.
        device: of the model.
        threads: worker processes beside a GPU. Without one, the model keeps the CPU busy, and
            images are decoded between its batches.
    """
    on_gpu = device.type == "cuda"
    # Processes that share out the batches share /dev/shm.
    item_bytes = parallel.size() * images.cache.ends[-1] / len(images.paths)
    ready = loader(
        images,
        keys,
        workers=threads if on_gpu else 0,
        pinned=on_gpu,
        item_bytes=item_bytes,
        collate=_together,
    )
    for indices, drawn, sizes, pixels in watched(ready):
        shapes = [(height, width, 3) for height, width in sizes.tolist()]
        parts = pixels.to(device, non_blocking=True).split([math.prod(shape) for shape in shapes])
        crops = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        yield indices, transform(crops, drawn)


def _together(samples: list[tuple[int, np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, ...]:
    """Return indices [B], random numbers [B, K], heights and widths [B, 2], and all pixels."""
    indices, drawn, images = zip(*samples, strict=True)
    return (
        torch.tensor(indices),
        torch.from_numpy(np.stack(drawn)),
        torch.tensor([image.shape[:2] for image in images]),
        torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])),
    )
