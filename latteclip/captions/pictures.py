"""The pictures that the model sees of the images of a request."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

OVERVIEW = 336  # side of the square in which LLaVA-1.6 sees a whole picture, pixels
OVERVIEW_TOKENS = 1176  # that it reads of a picture of this size: the overview, and one tile


@dataclass(frozen=True)
class Layout:
    """How the images of a request become the pictures that the model sees."""

    kind: str = "single"  # single, grid or multi_image
    canvas: int = 0  # of a grid: side of the square picture, pixels
    gap: int = 0  # between its cells, pixels
    max_side: int | None = None  # a larger image is scaled down to this many pixels
    square: int | None = None  # then each picture is scaled to a square of this side, pixels


def alone(max_side: int | None, square: int | None) -> Layout:
    """The layout of an image by itself; one that becomes a square is not scaled down before."""
    return Layout(max_side=None if square else max_side, square=square)


def lay_out(pictures: Sequence[Image.Image], layout: Layout) -> list[Image.Image]:
    """The RGB pictures that the model sees of those of single images."""
    shown = list(pictures)
    if layout.kind == "grid":
        shown = [grid(shown, layout.canvas, layout.gap)]
    return shown if layout.square is None else [square(each, layout.square) for each in shown]


def blanks(sizes: Sequence[tuple[int, int]], layout: Layout) -> list[Image.Image]:
    """Black pictures in the sizes that those of images will have.

    Args:
        sizes: (width, height) of the images, in pixels.
        layout: how they are shown.
    """
    pictures = [Image.new("RGB", size) for size in sizes]
    if layout.max_side is not None:
        for picture in pictures:
            picture.thumbnail((layout.max_side, layout.max_side))
    return lay_out(pictures, layout)


def square(picture: Image.Image, side: int) -> Image.Image:
    """A picture scaled to a square, whatever its shape (bicubic).

    LLaVA-1.6 does so to make the overview that it sees of each picture.
    """
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def grid(pictures: Sequence[Image.Image], canvas: int, gap: int) -> Image.Image:
    """Four pictures in a 2x2 grid on a black square (LatteCLIP, section 3.2).

    Args:
        pictures: RGB, row by row.
        canvas: side of the square in pixels.
        gap: pixels between the cells.

    Returns:
        An RGB picture; each of the four is scaled to fit its cell without distortion (Lanczos) and
        centred in it.
    """
    cell = (canvas - gap) // 2
    square = Image.new("RGB", (canvas, canvas))
    for place, picture in enumerate(pictures):
        row, column = divmod(place, 2)
        scale = min(cell / picture.width, cell / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        left = column * (cell + gap) + (cell - size[0]) // 2
        top = row * (cell + gap) + (cell - size[1]) // 2
        square.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))
    return square


def data_url(picture: Image.Image) -> str:
    """A picture as a data URL, without loss and without metadata."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, icc_profile=None)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
