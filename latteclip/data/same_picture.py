"""Whether two images show the same picture: align the one with the other, then compare details.

A thumbnail takes two chairs before a white wall for the same. Details that lie in the same place
after alignment tell them apart.

Letters: P pairs, S the side of a small picture.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from latteclip.data.fingerprints import VIEWS

SIDE = 64  # pixels
STEPS = 12  # of the alignment, the first half on blurred pictures
COARSE = 8  # pixels of a side whose mean is taken off, so that details stay
SCALES = (0.75, 1.1)  # the part of a side that the other image may show
SAME = 0.85  # correlation of details from which on two images show the same picture


def details_alike(
    ones: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8], views: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return the correlation of the details of aligned pictures [P], -1 to 1.

    Args:
        ones: RGB [P, S, S, 3].
        others: the same; each shows about the part `views` of its one.
        views: which of VIEWS the alignment starts from [P].
    """
    one, other = (torch.tensor(part).float().permute(0, 3, 1, 2) for part in (ones, others))
    aligned = _warped(one, _aligned(one.mean(1, True), other.mean(1, True), views))
    inside = (..., slice(COARSE, -COARSE), slice(COARSE, -COARSE))
    return _correlation(_details(aligned)[inside], _details(other)[inside]).numpy()


def _aligned(one: torch.Tensor, other: torch.Tensor, views: Sequence[int]) -> torch.Tensor:
    """Return scale and shift across, then down, of the best match of grey pictures [P, 4].

    Gauss-Newton steps on the squared difference, with a gain and an offset of brightness beside
    scale and shift (Lucas and Kanade 1981; Baker and Matthews 2004).
    """
    starts = [(share, (2 * x - 1) * (1 - share), share, (2 * y - 1) * (1 - share))
              for share, y, x in (VIEWS[view] for view in views)]  # fmt: skip
    places = torch.tensor(starts)
    best, found = _correlation(_warped(one, places), other), places
    blurred = [_blur(one), _blur(other)]
    line = _line()
    for step in range(STEPS):
        source, target = blurred if step < STEPS // 2 else (one, other)
        seen = _warped(source, places)
        down, across = torch.gradient(seen, spacing=2 / SIDE, dim=(2, 3))
        across, down = (
            across / places[:, 0, None, None, None],
            down / places[:, 2, None, None, None],
        )
        slopes = torch.stack(
            [across * line, across, down * line[:, None], down, seen, torch.ones_like(seen)], -1
        ).flatten(1, 3)  # [P, S S, 6]
        normal = slopes.mT @ slopes
        damped = normal + torch.diag_embed(1e-4 * normal.diagonal(dim1=1, dim2=2) + 1e-6)
        moves = torch.linalg.solve(damped, slopes.mT @ target.flatten(1)[..., None])[..., 0]
        places = places + (moves[:, :4] / moves[:, 4:5].clamp(min=0.3)).clamp(-0.1, 0.1)
        places[:, ::2] = places[:, ::2].clamp(*SCALES)
        now = _correlation(_warped(one, places), other)
        found = torch.where((now > best)[:, None], places, found)
        best = torch.maximum(now, best)
    return found


def _line() -> torch.Tensor:
    """Return the middles of the pixels of a side, from -1 to 1 [S]."""
    return (2 * torch.arange(SIDE) + 1) / SIDE - 1


def _warped(pictures: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the parts of pictures [P, C, S, S] that lie at scales and shifts [P, 4]."""
    across, down = (places[:, i, None] * _line() + places[:, i + 1, None] for i in (0, 2))
    where = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)
    return F.grid_sample(pictures, where, padding_mode="border", align_corners=False)


def _blur(pictures: torch.Tensor) -> torch.Tensor:
    for _ in range(2):
        pictures = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pictures


def _details(pictures: torch.Tensor) -> torch.Tensor:
    """Take off what is coarse."""
    coarse = F.avg_pool2d(pictures, COARSE)
    return pictures - F.interpolate(coarse, size=SIDE, mode="bilinear")


def _correlation(ones: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the correlation of pictures [P, C, S, S], each channel about its own mean [P]."""
    one, other = (part - part.mean((2, 3), keepdim=True) for part in (ones, others))
    lengths = one.flatten(1).norm(dim=1) * other.flatten(1).norm(dim=1)
    correlation: torch.Tensor = (one * other).flatten(1).sum(1) / lengths.clamp(min=1e-6)
    return correlation
