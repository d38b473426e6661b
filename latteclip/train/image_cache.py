"""Training pictures: decoded, made no larger than training needs them, kept, and put into batches.

Letters: N pictures, B batch, K numbers drawn for each, h x w a picture's size.
"""

import logging
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

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
REDUCING_GAP = 3.0  # by which, Pillow's documentation says, its quick resizing is as good as any
FREE = 2  # times the room on disk that must be free before pictures are kept there


def shrunken_sizes(sizes: np.ndarray, side: int) -> np.ndarray:
    """Widths and heights [N, 2] of pictures after `shrunken`, from those before."""
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    long = np.minimum(long, np.ceil(short * augment.WIDEST))
    scale = np.minimum(1.0, side / short)
    short, long = (np.maximum(1, np.round(length * scale)) for length in (short, long))
    is_wide = sizes[:, 0] > sizes[:, 1]
    return np.where(is_wide, [long, short], [short, long]).T.astype(np.int64)


def shrunken(path: str, side: int) -> np.ndarray:
    """A picture as uint8 [h, w, 3], its shorter side at most `side`.

    What no crop shows, at the ends of a very long picture, is cut off. Training sees all pictures
    as this gives them, whether they are kept or read again.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    picture = open_rgb(path, min_side=side)
    width, height = shrunken_sizes(np.array([picture.size]), side)[0].tolist()
    if (width, height) != picture.size:
        box = _middle(picture.size, (width, height))
        picture = picture.resize(
            (width, height), Image.Resampling.BICUBIC, box, reducing_gap=REDUCING_GAP
        )
    return np.asarray(picture)


def _middle(size: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the largest box of a shape in the middle of a picture.

    Rounding never puts a corner outside the picture, which Pillow would refuse.
    """
    scale = min(length / wanted for length, wanted in zip(size, shape, strict=True))
    left, top = (
        max(0.0, (length - wanted * scale) / 2) for length, wanted in zip(size, shape, strict=True)
    )
    return left, top, size[0] - left, size[1] - top


class KeptPictures:
    """Pictures that forked worker processes share: in memory first, the others in a file.

    A worker may find a picture that another one decoded. Memory and disk are taken as pictures
    come, and nothing is left when the processes end, however they do.
    """

    def __init__(self, sizes: np.ndarray, in_memory: int, folder: str | Path | None) -> None:
        """Keep nothing yet.

        Args:
            sizes: [N] bytes of each picture, height * width * 3.
            in_memory: bytes of the pictures that are kept in memory.
            folder: on whose disk the file is to be; None: the other pictures are not kept.
        """
        self.ends = np.cumsum(sizes, dtype=np.int64)  # [N]
        self.n_in_memory = int(np.searchsorted(self.ends, in_memory, side="right"))
        size = int(self.ends[self.n_in_memory - 1]) if self.n_in_memory else 0
        self.pixels = np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)
        shapes = mmap.mmap(-1, len(sizes) * 8)
        self.shapes = np.frombuffer(shapes, np.int32).reshape(-1, 2)  # h and w, 0: not yet
        self._file = None if folder is None else _nameless_file(folder)
        self._number = -1 if self._file is None else self._file.fileno()  # to -1 nothing is written

    def get(self, index: int) -> np.ndarray | None:
        """Picture `index` [h, w, 3], or None where it is not kept."""
        height, width = self.shapes[index].tolist()
        if not height:
            return None
        start, size = self._start(index), height * width * 3
        if index < self.n_in_memory:
            flat = self.pixels[start : start + size]
        else:
            flat = np.frombuffer(os.pread(self._number, size, start), np.uint8)
        return flat.reshape(height, width, 3)

    def put(self, index: int, picture: np.ndarray) -> None:
        """Keep picture `index` [h, w, 3], if it is no larger than was said and there is room."""
        start = self._start(index)
        if start + picture.size > self.ends[index]:
            return
        if index < self.n_in_memory:
            self.pixels[start : start + picture.size] = picture.reshape(-1)
        elif not _written(self._number, picture.tobytes(), start):
            return
        # Last, and the height after the width: it says that the pixels are there.
        self.shapes[index, 1] = picture.shape[1]
        self.shapes[index, 0] = picture.shape[0]

    def _start(self, index: int) -> int:
        return int(self.ends[index - 1]) if index else 0


def _nameless_file(folder: str | Path) -> IO[bytes]:
    """A file on the disk of a folder, which need not be there: it goes with the processes."""
    return tempfile.TemporaryFile(dir=existing(folder))


def _written(file: int, content: bytes, start: int) -> bool:
    """Whether all of `content` could be written at byte `start`."""
    try:
        return os.pwrite(file, content, start) == len(content)
    except OSError:  # the disk is full, say
        return False


def kept_pictures(
    sizes: np.ndarray, side: int, in_memory: float, folder: str | Path, processes: int = 1
) -> KeptPictures:
    """Room for pictures of the given widths and heights after `shrunken`.

    Args:
        sizes: [N, 2] width and height of each picture.
        side: see `shrunken`.
        in_memory: bytes that they may take in memory.
        folder: on whose disk the others are kept, where at most 1 / FREE of what is free is wanted.
        processes: how many of this training keep so much each.
    """
    # A JPEG that was decoded at an eighth may be a pixel longer than its size in full says.
    taken = 3 * (shrunken_sizes(sizes, side) + 1).prod(axis=1)
    beyond = taken.sum() - in_memory
    if beyond <= 0:
        place, where = None, "are kept in memory"
    else:
        fits = FREE * processes * beyond <= shutil.disk_usage(existing(folder)).free
        place = folder if fits else None
        rest = f"the others on the disk of {folder}" if fits else "the others are decoded anew"
        where = f"are kept in memory up to compute.cache_gib ({in_memory / 2**30:.1f}), {rest}"
    log.info("Made small, the images take %.1f GiB: they %s.", taken.sum() / 2**30, where)
    return KeptPictures(taken, int(in_memory), place)


class TrainingPictures(Dataset[tuple[int, np.ndarray, np.ndarray]]):
    """N pictures; a key is (number of the pass over all of them, index).

    Gives the index, the numbers [K] that decide the picture's transform in this pass, and its
    pixels. They depend on the seed, the pass and the picture alone: not on worker processes, on the
    order, nor on what is kept.
    """

    def __init__(self, paths: Sequence[str], side: int, seed: int, kept: KeptPictures) -> None:
        """See `shrunken` about `side`."""
        self.paths, self.side, self.seed, self.kept = paths, side, seed, kept

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, np.ndarray, np.ndarray]:
        number, index = key
        picture = self.kept.get(index)
        if picture is None:
            try:
                picture = shrunken(self.paths[index], self.side)
            except (ValueError, ArithmeticError) as error:
                raise UserError(
                    f"Image {self.paths[index]} cannot be scaled down for training "
                    f"({first_line(error)}); remove it, and report this as a bug."
                ) from error
            self.kept.put(index, picture)
        return index, augment.draw(self.seed, number, index), picture


def batches(
    pictures: TrainingPictures,
    keys: Iterable[Sequence[tuple[int, int]]],
    transform: augment.Augmentation,
    device: torch.device,
    threads: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode ahead of the model; what comes after that is done in batches on its device.

    Yields:
        Indices [B] on the CPU, and transformed images [B, 3, H, W] on `device`.

    Args:
        pictures: what to read.
        keys: of each batch, in order.
        transform: of the pictures.
        device: of the model.
        threads: CPU threads of this job: worker processes beside a GPU. Without one, the model
            keeps them busy, and images are decoded between its batches.
    """
    on_gpu = device.type == "cuda"
    workers = threads if on_gpu else 0
    # Processes that share out the batches share /dev/shm.
    item_bytes = parallel.size() * pictures.kept.ends[-1] / len(pictures.paths)
    ready = loader(
        pictures,
        keys,
        workers=workers,
        pinned=on_gpu,
        item_bytes=item_bytes,
        collate=_together,
    )
    for indices, drawn, sizes, pixels in watched(ready):
        shapes = [(height, width, 3) for height, width in sizes.tolist()]
        parts = pixels.to(device, non_blocking=True).split([math.prod(shape) for shape in shapes])
        yield (
            indices,
            transform([part.view(shape) for part, shape in zip(parts, shapes, strict=True)], drawn),
        )


def _together(samples: list[tuple[int, np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, ...]:
    """Indices [B], numbers drawn [B, K], heights and widths [B, 2], and all pixels in a row."""
    indices, drawn, pictures = zip(*samples, strict=True)
    return (
        torch.tensor(indices),
        torch.from_numpy(np.stack(drawn)),
        torch.tensor([picture.shape[:2] for picture in pictures]),
        torch.from_numpy(np.concatenate([picture.reshape(-1) for picture in pictures])),
    )


def pictures_of(
    clip: clips.Clip, inputs: data.TrainingData, settings: FinetuneSettings, folder: str, seed: int
) -> TrainingPictures:
    """Return the pictures, which stay in memory or on the disk of a folder once decoded."""
    processes = parallel.size()
    side = augment.Augmentation.of(clip).kept_side
    in_memory = settings.compute.cache_gib * 2**30 / processes
    room = kept_pictures(inputs.sizes, side, in_memory, folder, processes)
    return TrainingPictures(inputs.paths, side, seed, room)
