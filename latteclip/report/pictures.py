"""Pictures inside a page: small WebP files as data URIs, of bounded size."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from latteclip.data.images import open_rgb

QUALITIES = (80, 60, 40, 20)


@dataclass(frozen=True)
class Picture:
    """A picture as an <img> wants it."""

    uri: str
    width: int
    height: int


def picture(image: Image.Image, side: int, max_bytes: int) -> Picture:
    """An RGB picture, its longer side at most `side` pixels, in at most `max_bytes` before base64.

    Quality is lowered first, then the size is halved until it fits.
    """
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    while True:
        for quality in QUALITIES:
            file = io.BytesIO()
            small.save(file, "WEBP", quality=quality, method=4)
            if file.tell() <= max_bytes or max(small.size) <= 16:
                encoded = base64.b64encode(file.getvalue()).decode()
                return Picture(f"data:image/webp;base64,{encoded}", small.width, small.height)
        small = small.resize((max(1, small.width // 2), max(1, small.height // 2)))


def picture_of(path: str, side: int, max_bytes: int) -> Picture:
    """The picture of an image file.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    return picture(open_rgb(path, max_side=side), side, max_bytes)
