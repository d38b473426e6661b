"""An image file to an upright RGB picture. Imports no torch: worker processes start quickly."""

import io
import math
from pathlib import Path
from typing import BinaryIO

import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

from latteclip.core.errors import UserError
from latteclip.core.paths import irregular
from latteclip.data import members

# HEIC, which phones write. A worker has one core, and no thumbnail stands in for its image.
pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
# What may be decoded: Pillow knows many more, of which some run programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000")
MAX_PIXELS = 2**27  # of one image: twice 4 bytes each are 1 GiB
MAX_RATIO = 1000  # of the longer side to the shorter one: a model's input makes the shorter 224
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")
UPRIGHT = (None, 1)  # values of the EXIF orientation
ORIENTATION = 0x0112


def open_rgb(
    path: str | Path,
    *,
    content: BinaryIO | None = None,
    max_side: int | None = None,
    min_side: int | None = None,
) -> Image.Image:
    """Decode an image file: upright by its EXIF orientation, 8-bit RGB.

    Args:
        path: the file, the path of an image in a shard (see `members`), or a name alone where
            `content` is given.
        content: its bytes.
        max_side: a longer picture is scaled down to this many pixels (Lanczos).
        min_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, where its
            shorter side keeps this many pixels.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    try:
        return _decode(path, content, max_side, min_side)
    except Exception as error:  # decoders fail in many ways on broken files
        raise UserError(
            f"Image {path} cannot be decoded ({_reason(error)}); replace or remove it."
        ) from None


def read_or_reason(path: str | Path) -> bytes | str:
    """Return the bytes of an image, or the reason why they cannot be read."""
    try:
        return members.read(path)
    except (OSError, ValueError, MemoryError) as error:
        return _reason(error)


def open_or_reason(path: str | Path, content: BinaryIO | None = None) -> Image.Image | str:
    """Decode an image file as `open_rgb` does; or else the reason, in its own words."""
    try:
        return _decode(path, content)
    except Exception as error:  # as above
        return _reason(error)


def _decode(
    path: str | Path,
    content: BinaryIO | None = None,
    max_side: int | None = None,
    min_side: int | None = None,
) -> Image.Image:
    """`open_rgb` with whatever a decoder raises."""
    if content is None and members.member(path):
        content = io.BytesIO(members.read(path))
    elif content is None and (kind := irregular(path)):
        raise ValueError(f"it is {kind} and no regular file")
    with Image.open(content or path, formats=FORMATS) as image:
        _check_size(*image.size)
        if max_side is not None:
            # Twice the side, so that Lanczos has something to average.
            _decode_smaller(image, 2 * max_side / max(image.size))
        if min_side is not None:
            _decode_smaller(image, min_side / min(image.size))
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if image.mode in SIXTEEN_BIT:  # convert("RGB") would clip, not scale
            upright = image.convert("I").point(lambda value: value / 256.0).convert("L")
        picture = upright.convert("RGB")
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def _reason(error: Exception) -> str:
    """One line on why a decoder gave up."""
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    if isinstance(error, UnidentifiedImageError):  # whose words hold an address in memory
        return "it is no image of a known format"
    return next(iter(str(error).splitlines()), "") or "it is damaged"


def _check_size(width: int, height: int) -> None:
    """ValueError for an image that would take far more memory than any photograph."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"of {width} x {height} pixels, one side is over {MAX_RATIO} times the other"
        )


def _decode_smaller(image: Image.Image, scale: float) -> None:
    """Let a JPEG be decoded at a half, quarter or eighth, where that is `scale` or more."""
    if scale < 1:
        image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))


def is_plain(content: BinaryIO, max_side: int | None) -> bool:
    """Whether decoding alone gives what `open_rgb` gives: 8-bit, RGB, upright, small enough."""
    with Image.open(content, formats=FORMATS) as image:
        return (
            image.format in ("JPEG", "PNG")
            and image.mode == "RGB"
            and "transparency" not in image.info
            and image.getexif().get(ORIENTATION) in UPRIGHT
            and (max_side is None or max(image.size) <= max_side)
        )
