"""Training images: decoded once, cached on disk, and augmented by the processes that load them.

The augmentation is open_clip's: RandomResizedCrop, ColorJitter and Grayscale.
H x W is the model's input size.
"""

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from latteclip.core.errors import GIB
from latteclip.core.files import digest, existing, replacing
from latteclip.data.images import container_of, open_rgb
from latteclip.data.loader import Images

log = logging.getLogger(__name__)
# LatteCLIP, section 4 (implementation details).
AREA = (0.9, 1.0)  # of the crop, as a share of the picture's
RATIO = 4 / 3  # of the crop's longer side to the shorter one, at most
TRIES = 10  # crops that are drawn until one fits
# What ColorJitter does in random order, with lowest and highest factor.
JITTER = (
    (functional.adjust_brightness, 0.5, 1.5),
    (functional.adjust_contrast, 0.5, 1.5),
    (functional.adjust_saturation, 0.5, 1.5),
    (functional.adjust_hue, -0.1, 0.1),
)
JITTERED = 0.8  # probability
GREY = 0.2  # probability
# Shorter side of cached images over the model's input size: a crop differs less from one of the
# original than bilinear and bicubic resizing differ.
MARGIN = 1.5
# At which Pillow's quick resizing equals the exact one, by its documentation.
REDUCING_GAP = 3.0
FREE = 2  # times the room of all images that must be free before they are cached
MOST_CACHED = 100_000  # images with a file each


def augmented(
    image: Image.Image, side: tuple[int, int], draw: np.random.Generator
) -> torch.Tensor:
    """Return a random crop in random colours, uint8 [3, H, W].

    By torchvision's functions on Pillow's images, whose hues turn four times as fast as those of
    tensors. Its transforms would draw by torch, which takes as long as the work on small images.
    """
    height, width = side
    box = crop_box(*image.size, draw)
    image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if draw.random() < JITTERED:
        for number in draw.permutation(len(JITTER)):
            adjust, low, high = JITTER[number]
            image = adjust(image, draw.uniform(low, high))
    if draw.random() < GREY:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    pixels: torch.Tensor = functional.pil_to_tensor(image)
    return pixels


def crop_box(
    width: int, height: int, draw: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a crop, drawn as RandomResizedCrop does."""
    areas = width * height * draw.uniform(*AREA, size=TRIES)
    ratios = RATIO ** draw.uniform(-1, 1, size=TRIES)
    widths = np.rint(np.sqrt(areas * ratios))
    heights = np.rint(np.sqrt(areas / ratios))
    fitting = np.flatnonzero((widths <= width) & (heights <= height))
    if len(fitting):
        w, h = widths[fitting[0]], heights[fitting[0]]
        left, top = draw.integers([width - w + 1, height - h + 1])
    else:  # the largest one in the middle
        w, h = min(width, round(height * RATIO)), min(height, round(width * RATIO))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class DecodedImages:
    """Images whose shorter side has at most `side` pixels, in files that trainings share."""

    def __init__(self, folder: str | Path | None, paths: Sequence[str], side: int) -> None:
        """Cache images in a folder that exists, or whose disk has room. None: in no folder."""
        self.paths = paths
        self.side = side
        size = 4 * side**2 * len(paths)  # bytes, if the longer side is a third longer
        self.folder = None
        if folder and len(paths) <= MOST_CACHED and _has_room(str(folder), size):
            self.folder = Path(folder)
        place = f"cached in {self.folder}" if self.folder else "decoded each time"
        log.info("Decoded images take about %.1f GiB: %s.", size / GIB, place)
        self._state = functools.cache(_state)  # a shard has many images

    def read(self, index: int) -> Image.Image:
        """Return an image, or raise UserError."""
        if self.folder is None:
            return self._decode(index)
        path = self.paths[index]
        name = digest(path, self._state(container_of(path)), str(self.side))
        file = self.folder / name[:2] / f"{name}.ppm"
        with contextlib.suppress(OSError, ValueError):  # it is absent, or damaged
            image = Image.open(file, formats=["PPM"])
            image.load()
            return image
        decoded = self._decode(index)
        with contextlib.suppress(OSError), replacing(file) as temporary:  # the disk is full
            decoded.save(temporary, "PPM")
        return decoded

    def _decode(self, index: int) -> Image.Image:
        image = open_rgb(self.paths[index], min_side=self.side)
        scale = self.side / min(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(scale * length)) for length in image.size)
        bicubic = Image.Resampling.BICUBIC
        return image.resize((width, height), bicubic, reducing_gap=REDUCING_GAP)


def _state(path: str) -> str:
    """Return what another file of this name would change."""
    with contextlib.suppress(OSError):
        state = os.stat(path)
        return f"{state.st_size} {state.st_mtime_ns}"
    return "missing"


def _has_room(folder: str, size: float) -> bool:
    """Return whether a folder exists, where a training that had room wrote it, or has room."""
    return os.path.isdir(folder) or FREE * size <= shutil.disk_usage(existing(folder)).free


class TrainingImages(Images):
    """Augmented images uint8 [3, H, W] by their keys (number of the pass, index) and a seed."""

    def __init__(
        self,
        paths: Sequence[str],
        side: tuple[int, int],
        seed: int,
        folder: str | Path | None = None,
    ) -> None:
        """Prepare images for an input of H x W. The folder caches them as they are decoded."""
        self.images = DecodedImages(folder, paths, round(MARGIN * max(side)))
        self.side = side
        self.seed = seed

    def __getitem__(self, key: Any) -> tuple[Any, torch.Tensor]:
        number, index = key
        draw = np.random.default_rng((self.seed, number, index))
        return key, augmented(self.images.read(index), self.side, draw)
