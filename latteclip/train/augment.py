"""Augment training images randomly, in batches on the device.

The distribution and the result are those of open_clip's training transform (torchvision's
RandomResizedCrop, ColorJitter and Grayscale with the parameters below), except that colours are not
rounded between steps. There is no horizontal flip.
Letters: B images, K random numbers of each, h x w an image's size, H x W the model's input size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from latteclip.clip.model import Clip
from latteclip.core import devices

# LatteCLIP, section 4 (implementation details).
SCALE = (0.9, 1.0)  # area of the crop as a share of the picture's
RATIO = (3 / 4, 4 / 3)  # width over height of the crop
# Longer over shorter side of an image. Above RATIO[1] / SCALE[0], rounded up, no crop of RATIO has
# SCALE of the area, and the crop is always the largest one of RATIO in the middle.
WIDEST = 1.5
PROBABILITIES = (0.8, 0.2)  # of colour jitter, of grey
# Of brightness, contrast, saturation (factors) and hue (turns of its circle): the neutral values,
# and the largest difference from them.
UNCHANGED, STRENGTHS = (1.0, 1.0, 1.0, 0.0), (0.5, 0.5, 0.5, 0.1)
GREY = 4  # number of the step after these four

# Shorter side of cached images over the model's input size. With 1.5 a crop differs less from a
# crop of the original than bilinear and bicubic resizing differ.
MARGIN = 1.5
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ATTEMPTS = 10  # at a crop that lies within the image
# Random numbers of an image: areas and ratios of the attempts, place of the crop, order and factors
# of the jitter, whether it is applied and whether the image becomes grey.
PARTS = {"area": ATTEMPTS, "ratio": ATTEMPTS, "place": 2, "order": 4, "factors": 4, "whether": 2}
DRAWN = sum(PARTS.values())
ON_CPU = 2**16  # pixels processed at once, so that they stay in the CPU's cache


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
        """Return the transform of a model."""
        visual: Any = clip.model.visual
        size = visual.preprocess_cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        mean, std = (tuple(visual.preprocess_cfg[name]) for name in ("mean", "std"))
        return cls((height, width), mean, std)

    @property
    def cached_side(self) -> int:
        """Shorter side of cached images, large enough that crops are still reduced."""
        return round(MARGIN * max(self.side))

    def __call__(self, pictures: Sequence[torch.Tensor], drawn: torch.Tensor) -> torch.Tensor:
        """Return normalised crops [B, 3, H, W], float32.

        Args:
            pictures: B images, uint8 [h, w, 3], of any sizes, on the device.
            drawn: [B, K] of `draw`, on the CPU.
        """
        device = pictures[0].device
        boxes = crops(torch.tensor([picture.shape[:2] for picture in pictures]), drawn).tolist()
        order, factors = colours(drawn)
        factors, mean, std = (
            devices.send(values, device)
            for values in (factors, torch.tensor(self.mean), torch.tensor(self.std))
        )
        batch = torch.empty(len(pictures), 3, *self.side, device=device)
        for rows in self._portions(order, device):
            images = torch.empty(len(rows), 3, *self.side, device=device)
            for image, i in zip(images, rows, strict=True):
                image.copy_(resized(pictures[i], boxes[i], self.side))
            index = devices.send(torch.tensor(rows), device)
            steps = [order[i] for i in rows]
            images = recoloured(images.mul_(1 / 255), steps, factors[index])
            for image, i in zip(images.sub_(mean[:, None, None]), rows, strict=True):
                torch.div(image, std[:, None, None], out=batch[i])
        return batch

    def _portions(self, order: Sequence[list[int]], device: torch.device) -> list[list[int]]:
        """Return rows that are processed at once: all on a GPU, few with equal steps on a CPU."""
        rows = list(range(len(order)))
        if device.type != "cpu":
            return [rows]
        n = max(1, ON_CPU // math.prod(self.side))
        rows.sort(key=lambda row: order[row])
        groups = [list(group) for _, group in groupby(rows, key=lambda row: order[row])]
        return [group[start : start + n] for group in groups for start in range(0, len(group), n)]


def crops(sizes: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Return top, left, height and width of the crops [B, 4], as RandomResizedCrop draws them.

    Args:
        sizes: [B, 2], h and w.
        drawn: [B, K] by `draw`.
    """
    part = _parts(drawn)
    height, width = sizes.double().split(1, dim=1)  # [B, 1] each
    area = height * width * _between(part["area"], *SCALE)  # [B, ATTEMPTS]
    ratio = _between(part["ratio"], *map(math.log, RATIO)).exp()
    tried = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], dim=2)
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(dim=2)  # [B, ATTEMPTS]
    first = fits.int().argmax(dim=1)
    crop = tried[torch.arange(len(tried)), first].long()  # [B, 2]
    corner = (part["place"] * (sizes - crop + 1)).long()
    # Where nothing fits: the largest crop of RATIO, in the middle.
    least, most = RATIO
    heights = torch.minimum(height, (width / least).round())
    widths = torch.minimum(width, (height * most).round())
    middle = torch.cat([heights, widths], dim=1).long()
    none = ~fits.any(dim=1, keepdim=True)
    crop = torch.where(none, middle, crop)
    corner = torch.where(none, (sizes - middle) // 2, torch.minimum(corner, sizes - crop))
    return torch.cat([corner, crop], dim=1)


def resized(picture: torch.Tensor, box: Sequence[int], side: tuple[int, int]) -> torch.Tensor:
    """Resize a crop of uint8 [h, w, 3] to integers [3, H, W]: bicubic with antialiasing."""
    top, left, height, width = box
    crop = picture[top : top + height, left : left + width].permute(2, 0, 1)[None]
    if crop.device.type == "cuda":  # which resizes no integers
        exact = F.interpolate(crop.float(), side, mode="bicubic", antialias=True)
        return exact[0].round_().clamp_(0, 255)
    return F.interpolate(crop, side, mode="bicubic", antialias=True)[0]


def colours(drawn: torch.Tensor) -> tuple[list[list[int]], torch.Tensor]:
    """Return the colour steps of B images, as ColorJitter and Grayscale draw them.

    Args:
        drawn: [B, K] by `draw`.

    Returns:
        For each image the numbers of its STEPS in order, and the factors of all steps [B, 5].
    """
    part = _parts(drawn)
    strengths = torch.tensor(STRENGTHS)
    factors = torch.tensor(UNCHANGED) + strengths * (2 * part["factors"] - 1)
    jittered, grey = (part["whether"] < torch.tensor(PROBABILITIES)).unbind(1)
    shuffled = part["order"].argsort(dim=1).tolist()
    order = [
        steps * jitter + [GREY] * turn
        for steps, jitter, turn in zip(shuffled, jittered.tolist(), grey.tolist(), strict=True)
    ]
    return order, torch.cat([factors, torch.zeros(len(drawn), 1)], dim=1)


def recoloured(
    images: torch.Tensor, order: Sequence[Sequence[int]], factors: torch.Tensor
) -> torch.Tensor:
    """Apply the steps of `colours` to images [B, 3, H, W] in [0, 1], in place where possible."""
    for position in range(max(map(len, order))):
        now = [steps[position] if position < len(steps) else None for steps in order]
        for number in range(len(STEPS)):
            rows = [i for i, step in enumerate(now) if step == number]
            if rows:
                images = _step(images, STEPS[number], rows, factors[:, number, None, None, None])
    return images


def _step(
    images: torch.Tensor, step: Step, rows: Sequence[int], factors: torch.Tensor
) -> torch.Tensor:
    """Apply a step to some of the images."""
    if len(rows) == len(images):
        return step(images, factors)
    index = devices.send(torch.tensor(rows), images.device)
    images[index] = step(images[index], factors[index])
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

    Only the hue changes, so the largest and the smallest of a pixel's three values stay. Between
    them a value is a trapezoid of the hue. A turn of up to a sixth moves it along its slope,
    upwards if it goes towards the greater of the other two, and past neither end.
    """
    red, green, blue = images.split(1, dim=1)  # [B, 1, H, W] each
    top = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    turned = torch.empty_like(images)
    for channel, (after, before) in enumerate(((green, blue), (blue, red), (red, green))):
        torch.sub(after, before, out=turned[:, channel : channel + 1])
    turned.sign_().mul_((top - low).mul_(6 * turns))
    rest = (top + low).sub_(red).sub_(green).sub_(blue)
    torch.sub(rest, turned, out=turned).add_(images, alpha=2)
    return torch.clamp(turned, low, top, out=turned)


STEPS = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
    adjust_saturation,  # to none: GREY
)


def _luma(images: torch.Tensor) -> torch.Tensor:
    """Return the luma [B, 1, H, W] of images [B, 3, H, W] (ITU-R BT.601)."""
    red, green, blue = images.split(1, dim=1)
    luma: torch.Tensor = (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return luma


def _parts(drawn: torch.Tensor) -> dict[str, torch.Tensor]:
    """Split the numbers [B, K] by their purpose."""
    return dict(zip(PARTS, drawn.split(list(PARTS.values()), dim=1), strict=True))


def _between(drawn: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * drawn.double()
