from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latteclip.captions.pictures import Layout, blanks, grid, lay_out
from latteclip.captions.runner import show

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def squares(side=30):
    return [Image.new("RGB", (side, side), colour) for colour in COLOURS]


@pytest.mark.parametrize(("canvas", "gap"), [(672, 20), (129, 4), (61, 0)])
def test_four_squares_fill_their_cells_and_the_gaps_are_black(canvas, gap):
    picture = np.asarray(grid(squares(), canvas, gap))
    assert picture.shape == (canvas, canvas, 3)
    cell = (canvas - gap) // 2
    wanted = np.zeros_like(picture)
    for place, colour in enumerate(COLOURS):
        top, left = (place // 2) * (cell + gap), (place % 2) * (cell + gap)
        wanted[top : top + cell, left : left + cell] = colour
    np.testing.assert_array_equal(picture, wanted)


@pytest.mark.parametrize("size", [(40, 10), (31, 62)])
def test_a_picture_keeps_its_shape_and_lies_in_the_middle_of_its_cell(size):
    pictures = [Image.new("RGB", size, (255, 255, 255)), *squares()[1:]]
    cell = np.asarray(grid(pictures, 672, 20))[:326, :326].any(axis=2)
    rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
    height, width = len(rows), len(columns)
    assert max(height, width) == 326
    assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
    assert cell.sum() == height * width  # one full rectangle
    assert abs(rows[0] - (325 - rows[-1])) <= 1
    assert abs(columns[0] - (325 - columns[-1])) <= 1


@pytest.mark.parametrize("size", [(40, 10), (500, 375)])
def test_a_square_is_the_overview_of_llava(size):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    [shown] = lay_out([picture], Layout(square=24))
    assert shown == picture.resize((24, 24), Image.Resampling.BICUBIC)


def test_a_grid_becomes_a_square_as_a_whole():
    [shown] = lay_out(squares(), Layout("grid", 128, 4, square=64))
    assert shown == grid(squares(), 128, 4).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "layout",
    [
        *(Layout(), Layout(max_side=20), Layout(square=16), Layout("multi_image", max_side=20)),
        *(Layout("grid", 64, 4), Layout("grid", 64, 4, square=16)),
    ],
    ids=str,
)
def test_black_pictures_have_the_sizes_of_those_that_are_shown(layout, tmp_path):
    sizes = [(31, 20), (9, 14), (40, 40), (17, 50)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (200, 100, 50)).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    shown = show(layout, paths, [Path(path).read_bytes() for path in paths])
    assert [each.size for each in blanks(sizes, layout)] == [each.size for each in shown]
