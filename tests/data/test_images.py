import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from support.image_folders import folders, index
from support.web import jpeg

from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb, read_and_decode


def saved(path, size, **options):
    Image.new("RGB", size).save(path, **options)
    return path


@pytest.mark.parametrize("size", [(1, 6000), (6000, 1)])
def test_an_image_like_a_thread_is_refused(tmp_path, size):
    reason = read_and_decode(saved(tmp_path / "thread.jpg", size))
    assert f"{size[0]} x {size[1]}" in reason


def png(width, height):
    """The head of a picture of any size: what a bomb is made of."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize("size", [(12000, 12000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(*size) + bytes(100))
    assert isinstance(read_and_decode(tmp_path / "bomb.png"), str)
    with pytest.raises(UserError, match="cannot be decoded"):
        open_rgb(tmp_path / "bomb.png")


def test_what_runs_programs_is_no_image(tmp_path):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (9, 9)).save(tmp_path / "script.eps")
    (tmp_path / "script.eps").rename(tmp_path / "script.jpg")
    assert "known format" in read_and_decode(tmp_path / "script.jpg")


RAISED = [
    struct.error("unpack requires a buffer of 4 bytes"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    ValueError(""),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_counts_as_one_broken_image(tmp_path, monkeypatch, error):
    load = JpegImagePlugin.JpegImageFile.load

    def broken(image):
        if image.size == (99, 9):
            raise error
        return load(image)

    (folders(tmp_path / "d") / "cat" / "odd.jpg").write_bytes(jpeg(size=(99, 9)))
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", broken)
    monkeypatch.setattr("latteclip.data.index_images.Workers", InProcess)
    rows, _, [corrupt] = index(tmp_path / "d", tmp_path, max_corrupt=0.1)
    assert len(rows) == 20 and corrupt["image_id"] == "cat/odd.jpg"
    assert corrupt["reason"] and type(error).__name__ not in corrupt["reason"]
    with pytest.raises(UserError, match=r"odd\.jpg"):
        open_rgb(tmp_path / "d" / "cat" / "odd.jpg")


class InProcess:
    """Workers of this very process, whose decoder fails."""

    def __init__(self, work, *_, **__):
        self.work = work

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def in_order(self, tasks):
        return map(self.work, tasks)


def test_only_regular_files_are_opened(tmp_path):
    root = folders(tmp_path / "d")
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "zeros.jpg").symlink_to("/dev/zero")
    rows, _, corrupt = index(root, tmp_path, max_corrupt=0.5)
    assert len(rows) == 20
    assert [row["image_id"] for row in corrupt] == ["cat/pipe.jpg", "cat/zeros.jpg"]


# What phones write.


def phone_picture(path, **options):
    """A picture that is red on the left and blue on the right, 64 x 48."""
    picture = Image.new("RGB", (64, 48), "red")
    picture.paste("blue", (32, 0, 64, 48))
    picture.save(path, quality=90, **options)


@pytest.mark.parametrize("name", ["a.heic", "a.HIF", "a.avif"])
def test_phone_pictures_are_indexed_upright(tmp_path, name):
    root = folders(tmp_path / "d")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: what was on the left is at the top
    kind = "AVIF" if name.endswith("avif") else "HEIF"
    phone_picture(root / "cat" / name, exif=exif.tobytes(), format=kind)
    rows, _, corrupt = index(root, tmp_path)
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in rows}
    assert sizes[f"cat/{name}"] == (48, 64) and not corrupt
    decoded = open_rgb(root / "cat" / name)
    top, bottom = (decoded.getpixel((24, y)) for y in (8, 56))
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


# Pixels.


def saved_as(path, image, **options):
    image.save(path, **options)
    return path


def pixels(path):
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def ramp(height, width, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return (np.arange(np.prod(shape)) * 7 % 256).astype(np.uint8).reshape(shape)


def test_cmyk_jpeg_has_its_colours(tmp_path):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan ink only
    found = pixels(saved_as(tmp_path / "x.jpg", image, quality=100))
    np.testing.assert_allclose(found, np.broadcast_to([0, 255, 255], (16, 16, 3)), atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 256, 25650, 40000, 65535]], np.uint16)
    found = pixels(saved_as(tmp_path / f"x.{suffix}", Image.fromarray(values)))
    wanted = [v // 256 for v in (0, 256, 25650, 40000, 65535)]
    assert found.tolist() == [[[v] * 3 for v in wanted]]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, lambda a: a[:, ::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    values = ramp(5, 9, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(saved_as(tmp_path / "x.png", Image.fromarray(values), exif=exif))
    np.testing.assert_array_equal(found, turn(values))


@pytest.mark.parametrize(
    ("min_side", "size"),
    [
        (None, (640, 480)),
        (240, (320, 240)),
        (61, (160, 120)),
        (60, (80, 60)),
    ],
)
def test_a_jpeg_is_decoded_smaller_where_its_shorter_side_allows(tmp_path, min_side, size):
    picture = Image.fromarray(ramp(480, 640, 3))
    assert open_rgb(saved_as(tmp_path / "x.jpg", picture), min_side=min_side).size == size
    assert open_rgb(saved_as(tmp_path / "x.png", picture), min_side=min_side).size == (640, 480)
