"""The picture that a group description is asked about."""

from collections.abc import Sequence

from PIL import Image


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
