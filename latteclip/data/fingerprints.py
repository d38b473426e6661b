"""Fingerprints of pictures, which find near-duplicates: perceptual hashes and a thumbnail.

A hash marks which of a picture's lowest frequencies are above their median, by a discrete cosine
transform (as pHash does: Zauner 2010). Crops of the picture have hashes too, so that a copy without
its margin is similar to one of them. Imports no torch: worker processes start quickly.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 64  # S pixels of a side
FREQUENCIES = 16  # K waves along a side
THUMBNAIL = 16  # pixels of a side of the thumbnail
# Shares of each side; a view is the whole, or such a crop from five places.
CROPS = (0.95, 0.9)
PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # down, across
# V
VIEWS = [(1.0, 0.5, 0.5)]
VIEWS += [(share, *place) for share, place in itertools.product(CROPS, PLACES)]
BITS = FREQUENCIES**2  # of a hash
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """The size of a picture, its columns of FINGERPRINTS, and a checksum of its bytes."""

    width: int
    height: int
    hashes: bytes
    thumbnail: bytes
    checksum: bytes


def fingerprint(picture: Image.Image, checksum: bytes = b"") -> Fingerprint:
    """Return the fingerprint of an upright RGB picture, with the checksum of its bytes."""
    small = picture.convert("L").resize(
        (SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0
    )
    grey = np.asarray(small, np.float32)
    part = SIDE // THUMBNAIL
    thumbnail = grey.reshape(THUMBNAIL, part, THUMBNAIL, part).mean((1, 3)).round()
    return Fingerprint(
        width=picture.width,
        height=picture.height,
        hashes=hashes(grey).tobytes(),
        thumbnail=thumbnail.astype(np.uint8).tobytes(),
        checksum=checksum,
    )


def hashes(grey: Floats) -> npt.NDArray[np.uint8]:
    """Return the hashes [V, BITS / 8] of a grey picture [S, S]."""
    # Without @: threads of BLAS take ten times the CPU for matrices this small.
    across = np.einsum("ks,st->kt", _WAVES, grey - grey.mean())  # [stretches K, S]
    bands = np.einsum("kt,lt->kl", across, _WAVES)  # [stretches K, stretches K]
    n = len(_STRETCHES)
    blocks = bands.reshape(n, FREQUENCIES, n, FREQUENCIES)
    waves = blocks[_DOWN, :, _ACROSS].reshape(len(VIEWS), -1)  # [V, K K]
    medians = np.median(waves, axis=1, keepdims=True)
    return np.packbits(waves > medians, axis=1)


def inside(start: float, length: float, side: int) -> Floats:
    """Return the share of each pixel of a side [side] in a stretch, given in shares of the side."""
    pixels = np.arange(side, dtype=np.float32)
    first = start * side
    last = (start + length) * side
    part = np.minimum(pixels + 1, last) - np.maximum(pixels, first)
    return np.asarray(part.clip(0, 1), np.float32)


def _waves(share: float, place: float) -> Floats:
    """Return the lowest cosines [K, S] over a crop of a side, from place 0, at its start, to 1."""
    start = (1 - share) * place
    middles = (np.arange(SIDE) + 0.5) / SIDE
    # Where each pixel lies in the crop, from 0 to 1.
    along = ((middles - start) / share).clip(0, 1)
    frequencies = np.arange(FREQUENCIES)[:, None]
    cosines = np.cos(np.pi * frequencies * along)
    return np.asarray(cosines * inside(start, share, SIDE), np.float32)


# The stretches of a side that the views show: share and place.
_STRETCHES = sorted({view[:2] for view in VIEWS} | {view[::2] for view in VIEWS})
_WAVES = np.concatenate([_waves(*stretch) for stretch in _STRETCHES])  # [stretches K, S]
_DOWN = [_STRETCHES.index((share, down)) for share, down, _ in VIEWS]
_ACROSS = [_STRETCHES.index((share, across)) for share, _, across in VIEWS]
