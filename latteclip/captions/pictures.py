"""Images as the pictures that a model sees of them.

Imports neither torch nor an engine: worker processes start in a fraction of a second.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from latteclip.captions.questions import Request
from latteclip.data.images import open_rgb

GAP = 20 / 672  # between the cells of a grid, of its side: as in the paper's code


@dataclass(frozen=True)
class Layout:
    """How the images of a request become the pictures that the model sees."""

    canvas: int | None = None  # side of the square picture of several images, pixels
    max_side: int | None = None  # a larger image is scaled down to this many pixels
    # Then each picture is scaled to a square of this side, pixels.
    square: int | None = None


@dataclass(frozen=True)
class Preparer:
    """Reads and decodes the images of requests ahead of the engine, in worker processes."""

    layout: Layout

    def __call__(self, request: Request) -> Request:
        """Give a request its pictures. UserError: an image is not as the index has it."""
        pairs = zip(request.paths, request.checksums, strict=True)
        images = [
            open_rgb(path, wanted=checksum, max_side=self.layout.max_side)
            for path, checksum in pairs
        ]
        return replace(request, pictures=lay_out(images, self.layout))


def lay_out(images: list[Image.Image], layout: Layout) -> list[Image.Image]:
    """Return the RGB pictures that the model sees of RGB images."""
    if layout.canvas:
        images = [grid(images, layout.canvas)]
    if layout.square is None:
        return images
    # Whatever the shape (bicubic), as LLaVA-1.6 does for its overview.
    size = (layout.square, layout.square)
    return [image.resize(size, Image.Resampling.BICUBIC) for image in images]


def grid(pictures: Sequence[Image.Image], canvas: int) -> Image.Image:
    """Lay four RGB pictures out in a 2x2 grid on a black square (LatteCLIP, section 3.2).

    Each is scaled to fit its cell without distortion (Lanczos) and centred in it. `canvas` is the
    side of the square in pixels.
    """
    gap = round(canvas * GAP)
    cell = (canvas - gap) // 2
    step = cell + gap
    square = Image.new("RGB", (canvas, canvas))
    for position, picture in enumerate(pictures):
        row, column = divmod(position, 2)
        scale = min(cell / picture.width, cell / picture.height)
        width = max(1, round(picture.width * scale))
        height = max(1, round(picture.height * scale))
        scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
        left = column * step + (cell - width) // 2
        top = row * step + (cell - height) // 2
        square.paste(scaled, (left, top))
    return square


def data_url(picture: Image.Image) -> str:
    """Return a picture as a data URL, without loss and without metadata."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, icc_profile=None)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
