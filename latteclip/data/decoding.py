"""Decode the bytes of an image to an upright RGB picture.

Imports no torch: worker processes start quickly.
"""

import math
from typing import BinaryIO

import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

# HEIC, which phones write. A worker has one core, and never decodes the thumbnail instead.
pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
# Pillow knows many more formats, and runs programs for some of them.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000")
MAX_PIXELS = 2**27  # pixels of one image, at most: twice 4 bytes each are 1 GiB
# Ratio of the longer side to the shorter one, at most: a model's input makes the shorter 224.
MAX_RATIO = 1000
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")


def decode(
    file: BinaryIO, max_side: int | None = None, min_side: int | None = None
) -> Image.Image:
    """Decode a file to an upright RGB picture, and raise whatever a decoder raises.

    `max_side` and `min_side` scale it down as `open_rgb` says.
    """
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:  # before any memory is taken
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ValueError(f"{width} x {height} pixels are longer than {MAX_RATIO} to 1")
        scale = 1.0
        if max_side is not None:
            # So that Lanczos has something to average.
            scale = 2 * max_side / max(width, height)
        elif min_side is not None:
            scale = min_side / min(width, height)
        if scale < 1:  # a JPEG is decoded at a half, a quarter or an eighth of its size
            image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if image.mode in SIXTEEN_BIT:  # convert("RGB") would clip, not scale
            upright = image.convert("I").point(lambda value: value / 256.0).convert("L")
        picture = upright.convert("RGB")
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def reason(error: Exception) -> str:
    """Return one line on why a decoder gave up."""
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    if isinstance(error, UnidentifiedImageError):  # its message has an address in memory
        return "it is no image of a known format"
    return next(iter(str(error).splitlines()), "") or "it is damaged"
