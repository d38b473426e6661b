import base64
import io

import numpy as np
import pytest
from PIL import Image

from latteclip.captions.engines.openai import picture_parts
from latteclip.captions.questions import Layout, Request, grid
from latteclip.data.images import checksum

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
PLACE = "48.2082 N"


def squares():
    return [Image.new("RGB", (30, 30), colour) for colour in COLOURS]


@pytest.mark.parametrize(("canvas", "gap"), [(672, 20), (61, 2)])
def test_four_squares_fill_their_cells_and_the_gaps_are_black(canvas, gap):
    picture = np.asarray(grid(squares(), canvas))
    assert picture.shape == (canvas, canvas, 3)
    cell = (canvas - gap) // 2
    wanted = np.zeros_like(picture)
    for place, colour in enumerate(COLOURS):
        top, left = (place // 2) * (cell + gap), (place % 2) * (cell + gap)
        wanted[top : top + cell, left : left + cell] = colour
    np.testing.assert_array_equal(picture, wanted)


@pytest.mark.parametrize("size", [(40, 10), (31, 62)])
def test_a_picture_keeps_its_shape_and_is_in_the_middle_of_its_cell(size):
    pictures = [Image.new("RGB", size, (255, 255, 255)), *squares()[1:]]
    cell = np.asarray(grid(pictures, 672))[:326, :326].any(axis=2)
    rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
    height, width = len(rows), len(columns)
    assert max(height, width) == 326
    assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
    assert cell.sum() == height * width  # one full rectangle
    assert abs(rows[0] - (325 - rows[-1])) <= 1
    assert abs(columns[0] - (325 - columns[-1])) <= 1


def with_metadata(path, kind):
    """A picture with a place in its EXIF, a comment, its colour profile and behind its end."""
    tags = Image.Exif()
    tags[0x010E] = PLACE
    tags[0x0112] = 6  # turned
    tags.get_ifd(0x8825)[29] = PLACE
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    )
    picture.save(path, kind, exif=tags, comment=PLACE.encode(), icc_profile=PLACE.encode())
    path.write_bytes(path.read_bytes() + PLACE.encode())
    return path


def test_a_server_gets_the_pixels_alone(tmp_path):
    file = with_metadata(tmp_path / "a", "JPEG")
    asked = Request(0, (), "", None, [str(file)], [checksum(file.read_bytes())])
    shown = Layout().with_pictures(asked)
    [picture], [part] = shown.pictures, picture_parts(shown)
    assert picture.size == (30, 40)  # upright
    content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    assert PLACE.encode() not in content
    sent = Image.open(io.BytesIO(content))
    sent.load()
    assert not sent.info
    assert not sent.getexif()
    assert np.array_equal(np.asarray(sent), np.asarray(picture))
