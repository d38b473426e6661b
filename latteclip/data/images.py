"""An image file to an upright RGB picture. Imports no torch: worker processes start quickly."""

import math
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from latteclip.core.errors import UserError

SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")
UPRIGHT = (None, 1)  # values of the EXIF orientation
ORIENTATION = 0x0112
Decoded = tuple[int, int] | str  # width and height, or why the image cannot be decoded


def open_rgb(
    path: str | Path,
    *,
    content: BinaryIO | None = None,
    max_side: int | None = None,
    min_side: int | None = None,
) -> Image.Image:
    """Decode an image file: upright by its EXIF orientation, 8-bit RGB.

    Args:
        path: the file, or its name alone where `content` is given.
        content: its bytes.
        max_side: a longer picture is scaled down to this many pixels (Lanczos).
        min_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, where its
            shorter side keeps this many pixels.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(content or path) as image:
            if max_side is not None:
                # Twice the side, so that Lanczos has something to average.
                _decode_smaller(image, 2 * max_side / max(image.size))
            if min_side is not None:
                _decode_smaller(image, min_side / min(image.size))
            upright = ImageOps.exif_transpose(image)
            if upright.mode in SIXTEEN_BIT:  # convert("RGB") would clip, not scale
                upright = upright.point(lambda value: value / 256.0).convert("L")
            picture = upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"Image {path} cannot be decoded ({error}); replace or remove it."
        ) from None
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def _decode_smaller(image: Image.Image, scale: float) -> None:
    """Let a JPEG be decoded at a half, quarter or eighth, where that is `scale` or more."""
    if scale < 1:
        image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))


def is_plain(content: BinaryIO, max_side: int | None) -> bool:
    """Whether decoding alone gives what `open_rgb` gives: 8-bit, RGB, upright, small enough."""
    with Image.open(content) as image:
        return (
            image.format in ("JPEG", "PNG")
            and image.mode == "RGB"
            and "transparency" not in image.info
            and image.getexif().get(ORIENTATION) in UPRIGHT
            and (max_side is None or max(image.size) <= max_side)
        )


def size_of(path: str | Path) -> Decoded:
    """Decode an image file for its width and height; or else the reason, in its own words."""
    try:
        return open_rgb(path).size
    except Exception as error:  # decoders fail in many ways on broken files
        return f"{type(error).__name__}: {error}"
