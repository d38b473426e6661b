"""Training images: decoded, reduced, cached, and augmented in batches on the device.

The augmentation is open_clip's (RandomResizedCrop, ColorJitter, Grayscale), but colours are not
rounded between steps.
Letters: N images, B batch, K random numbers of an image, h x w its size, H x W the model's input.
"""

import contextlib
import functools
import itertools
import logging
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

from latteclip.clip.model import Clip
from latteclip.core import devices
from latteclip.core.files import existing, replacing
from latteclip.core.hashing import digest
from latteclip.data.images import container_of, open_rgb
from latteclip.data.loader import loader, watched

log = logging.getLogger(__name__)
# LatteCLIP, section 4 (implementation details).
SCALE = (0.9, 1.0)  # area of the crop as a share of the picture's
RATIO = (3 / 4, 4 / 3)  # width over height of the crop
# Longer over shorter side, from which on every crop is the largest one in the middle: no crop of
# RATIO has SCALE of the area. RATIO[1] / SCALE[0], rounded up.
WIDEST = 1.5
PROBABILITIES = (0.8, 0.2)  # probabilities of colour jitter and of grey
# Brightness, contrast, saturation (factors) and hue (turns of its circle): the neutral values, and
# the largest difference from them.
UNCHANGED = (1.0, 1.0, 1.0, 0.0)
STRENGTHS = (0.5, 0.5, 0.5, 0.1)
GREY = 4  # number of the step after these four
# Shorter side of cached images over the model's input size: a crop differs less from one of the
# original than bilinear and bicubic resizing differ.
MARGIN = 1.5
ATTEMPTS = 10  # at a crop that lies within the image
# Random numbers of an image. The last two say whether it is jittered, and whether it becomes grey.
PARTS = {
    "area": ATTEMPTS,
    "ratio": ATTEMPTS,
    "place": 2,
    "order": 4,
    "factors": 4,
    "whether": 2,
}
DRAWN = sum(PARTS.values())
ON_CPU = 2**16  # pixels processed at once, so that they stay in the CPU's cache
# At which Pillow's quick resizing equals the exact one, by its documentation.
REDUCING_GAP = 3.0
FREE = 2  # times the room on disk that must be free before images are cached there
MOST_SHARED = 100_000  # images with a file each


def cached_sizes(sizes: np.ndarray, side: int) -> np.ndarray:
    """Return widths and heights [N, 2] after `resize_for_cache`, from those before."""
    short = sizes.min(axis=1)
    long = np.minimum(sizes.max(axis=1), np.ceil(short * WIDEST))
    scale = np.minimum(1.0, side / short)
    new_short = np.round(short * scale).clip(min=1)
    new_long = np.round(long * scale).clip(min=1)
    is_wide = sizes[:, 0] > sizes[:, 1]
    widths = np.where(is_wide, new_long, new_short)
    heights = np.where(is_wide, new_short, new_long)
    return np.stack([widths, heights], axis=1).astype(np.int64)


def resize_for_cache(path: str, side: int) -> np.ndarray:
    """Return an image as uint8 [h, w, 3], its shorter side at most `side`, or raise UserError."""
    image = open_rgb(path, min_side=side)
    [size] = map(tuple, cached_sizes(np.array([image.size]), side).tolist())
    if size != image.size:  # no crop shows the ends of a very long image: they are cut off
        box = _middle(image.size, size)
        gap = REDUCING_GAP
        image = image.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=gap)
    return np.asarray(image)


def _middle(
    size: tuple[int, int], shape: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the largest box of a shape in the middle of a size."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    # Rounding may put no corner outside the image, which Pillow would refuse.
    left = max(0.0, (size[0] - shape[0] * scale) / 2)
    top = max(0.0, (size[1] - shape[1] * scale) / 2)
    return left, top, size[0] - left, size[1] - top


class ImageCache:
    """Images that forked worker processes share, in files without names that grow as they come."""

    def __init__(
        self, sizes: np.ndarray, in_memory: int, folder: str | Path | None
    ) -> None:
        """Make room for `sizes` bytes [N]: `in_memory` of them in memory, others in the folder."""
        self.ends = np.cumsum(sizes, dtype=np.int64)  # [N]
        self.starts = self.ends - sizes
        self.n_in_memory = int(np.searchsorted(self.ends, in_memory, side="right"))
        # [N, 2] height and width, 0 until the image is cached.
        shared = mmap.mmap(-1, len(sizes) * 8)
        self.shapes = np.frombuffer(shared, np.int32).reshape(-1, 2)
        self._memory = _memory_file()
        self._disk = None
        if folder:
            self._disk = tempfile.TemporaryFile(dir=existing(folder))  # noqa: SIM115

    def _file(self, index: int) -> Any:
        return self._memory if index < self.n_in_memory else self._disk

    def get(self, index: int) -> np.ndarray | None:
        """Return an image [h, w, 3], or None if it is not cached."""
        height, width = self.shapes[index].tolist()
        if not height:
            return None
        size = height * width * 3
        content = os.pread(self._file(index).fileno(), size, self.starts[index])
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def put(self, index: int, image: np.ndarray) -> None:
        """Cache an image [h, w, 3] if there is room for it."""
        file = self._file(index)
        start = self.starts[index]
        if file is None or start + image.size > self.ends[index]:
            return
        height, width, _ = image.shape
        with contextlib.suppress(OSError):  # the disk is full, for example
            if os.pwrite(file.fileno(), image.tobytes(), start) == image.size:
                self.shapes[index, 1] = width
                self.shapes[index, 0] = height  # last: it marks the image as cached


def _memory_file() -> Any:
    """Return a new file in memory. On macOS, which has none, the system caches the file there."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("latteclip"), "w+b")
    return tempfile.TemporaryFile()


class SharedImages:
    """Images that all trainings of a dataset share, in files of their own, whole or not there."""

    def __init__(self, folder: str | Path, paths: Sequence[str], side: int) -> None:
        """Name the files by the images as they are now, and their shorter side."""
        state_of = functools.cache(_state)  # cached, for a shard has many images
        names = (digest(path, state_of(container_of(path)), str(side)) for path in paths)
        self.files = [Path(folder, name[:2], f"{name}.npy") for name in names]

    def get(self, index: int) -> np.ndarray | None:
        """Return an image [h, w, 3], or None if it has no file."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            return np.load(self.files[index], allow_pickle=False)  # type: ignore[no-any-return]
        return None

    def put(self, index: int, image: np.ndarray) -> None:
        """Write an image [h, w, 3] if there is room for it."""
        with (
            contextlib.suppress(OSError),
            replacing(self.files[index]) as path,
            path.open("wb") as file,
        ):
            np.save(file, image, allow_pickle=False)


def _state(path: str) -> str:
    """Return what another file of this name would change."""
    with contextlib.suppress(OSError):
        state = os.stat(path)
        return f"{state.st_size} {state.st_mtime_ns}"
    return "missing"


class TrainingImages(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Random numbers [K] of an image's transform, and its pixels, by (pass, index) and seed."""

    def __init__(
        self,
        paths: Sequence[str],
        sizes: np.ndarray,
        transform: "Augmentation",
        seed: int,
        in_memory: float,
        folder: str | Path,
        shared: str | Path | None = None,
    ) -> None:
        """Prepare the cache of images of width and height `sizes` [N, 2] in their files.

        If there is room, the folder `shared` has all
        images for this training and others, or the disk of `folder` has the rest for this one.
        """
        self.paths = paths
        self.transform = transform
        self.seed = seed
        # A JPEG that was decoded at an eighth may be a pixel longer than its full size says.
        taken = 3 * (cached_sizes(sizes, transform.cached_side) + 1).prod(axis=1)
        self.shared = None
        cache_folder = None
        place = "decoded each time"
        if shared is not None and len(paths) <= MOST_SHARED:
            files = SharedImages(shared, paths, transform.cached_side)
            is_missing = [not file.exists() for file in files.files]
            if _has_room(shared, taken[is_missing].sum()):
                self.shared = files
                place = f"shared with other trainings in {shared}"
        beyond = max(0.0, taken.sum() - in_memory)
        is_needed = self.shared is None and beyond > 0
        if is_needed and _has_room(folder, beyond):
            cache_folder = folder
            place = f"cached on the disk of {folder}"
        log.info(
            "Resized images take %.1f GiB: in memory %.1f at most (compute.cache_gib), others %s.",
            taken.sum() / 2**30,
            in_memory / 2**30,
            place,
        )
        self.cache = ImageCache(taken, int(in_memory), cache_folder)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        number, index = key
        image = self.cache.get(index)
        if image is None:
            image = self._read(index)
            self.cache.put(index, image)
        return draw(self.seed, number, index), image

    def _read(self, index: int) -> np.ndarray:
        """Return an image [h, w, 3] of the shared ones, or from its file."""
        shared = self.shared.get(index) if self.shared else None
        if shared is not None:
            return shared
        image = resize_for_cache(self.paths[index], self.transform.cached_side)
        if self.shared:
            self.shared.put(index, image)
        return image

    def batches(
        self, keys: Iterable[Sequence[tuple[int, int]]], device: torch.device, threads: int
    ) -> Iterator[torch.Tensor]:
        """Decode ahead of the model, and yield transformed images [B, 3, H, W] on its device."""
        on_gpu = device.type == "cuda"
        ready = loader(
            self,
            keys,
            workers=threads if on_gpu else 0,  # without a GPU, the model keeps the CPU busy
            pinned=on_gpu,
            item_bytes=self.cache.ends[-1] / len(self.paths),
            collate=_together,
        )
        parts = list[torch.Tensor]()
        pictures = list[torch.Tensor]()
        for (numbers, shapes, pixels), is_last in watched(ready):
            parts.append(numbers)
            lengths = [math.prod(shape) for shape in shapes]
            pieces = pixels.to(device, non_blocking=True).split(lengths)
            for piece, shape in zip(pieces, shapes, strict=True):
                pictures.append(piece.view(shape))
            if is_last:
                yield self.transform(pictures, torch.cat(parts))
                parts = []
                pictures = []


def _has_room(folder: str | Path, size: float) -> bool:
    """Return whether a disk has FREE times as many bytes as are to be written."""
    return bool(FREE * size <= shutil.disk_usage(existing(folder)).free)


def _together(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Any, ...]:
    """Return random numbers [B, K], shapes (h, w, 3), and all pixels one after another."""
    numbers, images = zip(*samples, strict=True)
    pixels = np.concatenate([image.reshape(-1) for image in images])
    shapes = [image.shape for image in images]
    return torch.from_numpy(np.stack(numbers)), shapes, torch.from_numpy(pixels)


def draw(seed: int, number: int, index: int) -> np.ndarray:
    """Return uniform numbers [K] in [0, 1) for image `index` in a pass over all images."""
    return np.random.default_rng((seed, number, index)).random(DRAWN, np.float32)


@dataclass(frozen=True)
class Augmentation:
    """The transform for the input of a model."""

    side: tuple[int, int]  # H and W
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, clip: Clip) -> "Augmentation":
        config: dict[str, Any] = clip.model.visual.preprocess_cfg  # type: ignore[assignment, union-attr]
        height, width = np.broadcast_to(config["size"], 2).tolist()
        return cls((height, width), tuple(config["mean"]), tuple(config["std"]))

    @property
    def cached_side(self) -> int:
        return round(MARGIN * max(self.side))

    def __call__(
        self, pictures: Sequence[torch.Tensor], numbers: torch.Tensor
    ) -> torch.Tensor:
        """Return normalised crops [B, 3, H, W] of uint8 pictures [h, w, 3], by `numbers` [B, K]."""
        device = pictures[0].device
        sizes = torch.tensor([picture.shape[:2] for picture in pictures])
        boxes = crops(sizes, numbers).tolist()
        order, factors = colours(numbers)
        factors = devices.send(factors, device)
        mean = devices.send(torch.tensor(self.mean), device)[:, None, None]
        std = devices.send(torch.tensor(self.std), device)[:, None, None]
        batch = torch.empty(len(pictures), 3, *self.side, device=device)
        for rows in self._portions(order, device):
            images = torch.empty(len(rows), 3, *self.side, device=device)
            for image, i in zip(images, rows, strict=True):
                image.copy_(resized(pictures[i], boxes[i], self.side))
            index = devices.send(torch.tensor(rows), device)
            steps = [order[i] for i in rows]
            images.mul_(1 / 255)
            images = recoloured(images, steps, factors[index])
            for image, i in zip(images.sub_(mean), rows, strict=True):
                torch.div(image, std, out=batch[i])
        return batch

    def _portions(
        self, order: Sequence[list[int]], device: torch.device
    ) -> list[list[int]]:
        """Return rows that are processed at once: all on a GPU, few with equal steps on a CPU."""
        if device.type != "cpu":
            return [list(range(len(order)))]
        n = max(1, ON_CPU // math.prod(self.side))
        portions = []
        rows = sorted(range(len(order)), key=order.__getitem__)
        for _, group in groupby(rows, key=order.__getitem__):
            while portion := list(itertools.islice(group, n)):
                portions.append(portion)
        return portions


def crops(sizes: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return top, left, height and width [B, 4] of RandomResizedCrop for sizes h and w [B, 2]."""
    part = _parts(numbers)
    least, most = RATIO
    height, width = sizes.double().split(1, dim=1)  # [B, 1] each
    scale = _between(part["area"], *SCALE)  # [B, ATTEMPTS]
    area = height * width * scale
    ratio = _between(part["ratio"], math.log(least), math.log(most)).exp()
    tried_heights = (area / ratio).sqrt().round()
    tried_widths = (area * ratio).sqrt().round()
    tried = torch.stack([tried_heights, tried_widths], dim=2)
    is_inside = (tried > 0) & (tried <= sizes[:, None])
    fits = is_inside.all(dim=2)  # [B, ATTEMPTS]
    first = fits.int().argmax(dim=1)
    every = torch.arange(len(tried))
    crop = tried[every, first].long()  # [B, 2]
    room = sizes - crop
    corner = (part["place"] * (room + 1)).long()
    corner = torch.minimum(corner, room)
    # Where nothing fits: the largest crop of RATIO, in the middle.
    heights = torch.minimum(height, (width / least).round())
    widths = torch.minimum(width, (height * most).round())
    largest = torch.cat([heights, widths], dim=1).long()
    in_middle = (sizes - largest) // 2
    is_any = fits.any(dim=1, keepdim=True)
    crop = torch.where(is_any, crop, largest)
    corner = torch.where(is_any, corner, in_middle)
    return torch.cat([corner, crop], dim=1)


def resized(
    picture: torch.Tensor, box: Sequence[int], side: tuple[int, int]
) -> torch.Tensor:
    """Resize a crop of uint8 [h, w, 3] to integers [3, H, W]: bicubic with antialiasing."""
    top, left, height, width = box
    bottom = top + height
    right = left + width
    crop = picture[top:bottom, left:right].permute(2, 0, 1)[None]
    if crop.device.type != "cpu":  # GPUs resize no integers
        exact = F.interpolate(crop.float(), side, mode="bicubic", antialias=True)
        return exact[0].round_().clamp_(0, 255)
    return F.interpolate(crop, side, mode="bicubic", antialias=True)[0]


def colours(numbers: torch.Tensor) -> tuple[list[list[int]], torch.Tensor]:
    """Return each image's STEPS in order, and all factors [B, 5], of ColorJitter and Grayscale."""
    part = _parts(numbers)
    signed = 2 * part["factors"] - 1
    factors = torch.tensor(UNCHANGED) + torch.tensor(STRENGTHS) * signed
    is_done = part["whether"] < torch.tensor(PROBABILITIES)
    shuffled = part["order"].argsort(dim=1).tolist()
    orders = []
    for steps, (is_jittered, is_grey) in zip(shuffled, is_done.tolist(), strict=True):
        order = list(steps) if is_jittered else []
        if is_grey:
            order.append(GREY)
        orders.append(order)
    factor_of_grey = torch.zeros(len(numbers), 1)
    return orders, torch.cat([factors, factor_of_grey], dim=1)


def recoloured(
    images: torch.Tensor, order: Sequence[Sequence[int]], factors: torch.Tensor
) -> torch.Tensor:
    """Apply the steps of `colours` to images [B, 3, H, W] in [0, 1], in place where possible."""
    for now in itertools.zip_longest(*order):
        for number, step in enumerate(STEPS):
            rows = [i for i, chosen in enumerate(now) if chosen == number]
            by = factors[:, number, None, None, None]
            if len(rows) == len(images):
                images = step(images, by)
            elif rows:
                index = devices.send(torch.tensor(rows), images.device)
                images[index] = step(images[index], by[index])
    return images


def adjust_brightness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply images [B, 3, H, W] by [B, 1, 1, 1], in place like the next functions."""
    return images.mul_(factors).clamp_(0, 1)


def adjust_contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Move each image away from its mean luma, or towards it."""
    means = _luma(images.mean(dim=(2, 3), keepdim=True))  # [B, 1, 1, 1]
    return images.mul_(factors).add_(means.mul_(1 - factors)).clamp_(0, 1)


def adjust_saturation(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Move each pixel away from its luma, or towards it."""
    luma = _luma(images).mul_(1 - factors)  # [B, 1, H, W]
    return images.mul_(factors).add_(luma).clamp_(0, 1)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue by [B, 1, 1, 1] of its circle, a sixth at most.

    A pixel's largest and smallest values stay. Another is a trapezoid of the hue: a turn moves it
    along the slope, upwards towards the greater of the other two, past neither end.
    """
    red, green, blue = images.split(1, dim=1)  # [B, 1, H, W] each
    top = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    turned = torch.empty_like(images)
    of_red, of_green, of_blue = turned.split(1, dim=1)
    torch.sub(green, blue, out=of_red)
    torch.sub(blue, red, out=of_green)
    torch.sub(red, green, out=of_blue)
    turned.sign_()
    distance = top - low
    turned.mul_(distance.mul_(6 * turns))
    rest = top + low
    rest.sub_(red).sub_(green).sub_(blue)
    torch.sub(rest, turned, out=turned)
    turned.add_(images, alpha=2)
    return torch.clamp(turned, low, top, out=turned)


# In the order of their numbers. The last one, GREY, takes all saturation away.
STEPS = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
    adjust_saturation,
)


def _luma(images: torch.Tensor) -> torch.Tensor:
    """Return the luma [B, 1, H, W] (ITU-R BT.601)."""
    red, green, blue = images.split(1, dim=1)
    luma: torch.Tensor = (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return luma


def _parts(numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(PARTS, numbers.split(list(PARTS.values()), dim=1), strict=True))


def _between(numbers: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * numbers.double()
