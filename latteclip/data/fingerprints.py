"""Fingerprints of pictures, which find near-duplicates: perceptual hashes and a thumbnail.

A hash marks which of a picture's lowest frequencies are above their median, by a discrete cosine
transform (as pHash does: Zauner 2010). Crops of the picture have hashes too, so that a copy without
its margin is similar to one of them. Imports no torch: worker processes start quickly.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE, FREQUENCIES, THUMBNAIL = 64, 16, 16  # pixels S, waves K and pixels of a side
# Shares of each side; a view is the whole, or such a crop from five places.
CROPS = (0.95, 0.9)
PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # down, across
VIEWS = [(1.0, 0.5, 0.5)] + [(share, *place) for share in CROPS for place in PLACES]  # V
BITS = FREQUENCIES**2
HASHES = len(VIEWS) * BITS // 8  # bytes of the V hashes of a picture
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
    small = thumbnail.astype(np.uint8).tobytes()
    return Fingerprint(*picture.size, hashes(grey).tobytes(), small, checksum)


def hashes(grey: Floats) -> npt.NDArray[np.uint8]:
    """Return the hashes [V, BITS / 8] of a grey picture [S, S]."""
    # Without @: threads of BLAS take ten times the CPU for matrices this small.
    across = np.einsum("ks,st->kt", _WAVES, grey - grey.mean())  # [stretches K, S]
    bands = np.einsum("kt,lt->kl", across, _WAVES)  # [stretches K, stretches K]
    blocks = bands.reshape(len(_STRETCHES), FREQUENCIES, len(_STRETCHES), FREQUENCIES)
    waves = blocks[_DOWN, :, _ACROSS].reshape(len(VIEWS), -1)  # [V, K K]
    return np.packbits(waves > np.median(waves, axis=1, keepdims=True), axis=1)


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
    # Where each pixel lies in the crop, from 0 to 1.
    along = ((np.arange(SIDE) + 0.5) / SIDE - start) / share
    cosines = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * along.clip(0, 1))
    return np.asarray(cosines * inside(start, share, SIDE), np.float32)


_STRETCHES = sorted({(share, place) for share, *places in VIEWS for place in places})
_WAVES = np.concatenate([_waves(*one) for one in _STRETCHES])  # [stretches K, S]
_DOWN = [_STRETCHES.index((share, down)) for share, down, _ in VIEWS]
_ACROSS = [_STRETCHES.index((share, across)) for share, _, across in VIEWS]
