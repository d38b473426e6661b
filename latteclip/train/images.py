"""Training images: decoded once, cached on disk, and augmented by the processes that load them.

H x W is the model's input size.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from latteclip.core.files import existing, replacing
from latteclip.data.images import open_rgb
from latteclip.data.loader import Images

# Shorter side of cached images over the model's input size: a crop differs less from one of the
# original than bilinear and bicubic resizing differ.
MARGIN = 1.5
# At which Pillow's quick resizing equals the exact one, by its documentation.
REDUCING_GAP = 3.0
FREE = 2  # times the room of all images that must be free before they are cached
MOST_CACHED = 100_000  # images with a file each


def augmentation(side: tuple[int, int]) -> v2.Compose:
    """Return open_clip's random crops and colours, to uint8 [3, H, W] (LatteCLIP, section 4)."""
    jitter = v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                side, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC
            ),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.PILToTensor(),
        ]
    )


class TrainingImages(Images):
    """Augmented images uint8 [3, H, W] by their keys (number of the pass, index) and a seed."""

    def __init__(
        self,
        paths: Sequence[str],
        checksums: pa.ChunkedArray,
        side: tuple[int, int],
        seed: int,
        folder: str | None = None,
    ) -> None:
        """Prepare N images with the checksums of their files for an input of H x W.

        Trainings share decoded images in the folder, if its disk has room.
        """
        self.paths = paths
        self.checksums = checksums
        self.shorter_side = round(MARGIN * max(side))
        self.augment = augmentation(side)
        self.seed = seed
        self.folder = None
        size = 4 * self.shorter_side**2 * len(paths)  # if the longer side is a third longer
        if folder and len(paths) <= MOST_CACHED:
            # Where the folder exists, a training that had room wrote it.
            free = shutil.disk_usage(existing(folder)).free
            has_room = os.path.isdir(folder) or FREE * size <= free
            self.folder = Path(folder) if has_room else None

    def __getitem__(self, key: Any) -> tuple[Any, torch.Tensor]:
        number, index = key
        [seed] = np.random.SeedSequence((self.seed, number, index)).generate_state(1)
        picture = self._read(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return key, self.augment(picture)

    def _read(self, index: int) -> Image.Image:
        """Return an image from the cache, or cache it, or raise UserError."""
        if self.folder is None:
            return self._decode(index)
        name = f"{self.checksums[index].as_py().hex()}-{self.shorter_side}.ppm"
        file = self.folder / name[:2] / name
        with contextlib.suppress(FileNotFoundError):
            return Image.open(file)
        decoded = self._decode(index)
        with contextlib.suppress(OSError), replacing(file) as temporary:  # the disk is full
            decoded.save(temporary, "PPM")
        return decoded

    def _decode(self, index: int) -> Image.Image:
        image = open_rgb(self.paths[index], min_side=self.shorter_side)
        scale = self.shorter_side / min(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(scale * length)) for length in image.size)
        bicubic = Image.Resampling.BICUBIC
        return image.resize((width, height), bicubic, reducing_gap=REDUCING_GAP)
