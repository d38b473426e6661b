import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb


def png(width, height):
    """The head of a picture of any size: what a bomb is made of."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + crc + bytes(100)


def film(path):
    with path.open("wb") as file:
        file.truncate(2**40)


def script(path):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (9, 9)).save(path.with_suffix(".eps"))
    path.with_suffix(".eps").rename(path)


REFUSED = {
    "a thread": (lambda path: Image.new("RGB", (1, 6000)).save(path), "1 x 6000"),
    "a wide thread": (lambda path: Image.new("RGB", (6000, 1)).save(path), "6000 x 1"),
    "a bomb": (lambda path: path.write_bytes(png(12000, 12000)), "decoded"),
    "a larger bomb": (lambda path: path.write_bytes(png(2**31 - 1, 2**31 - 1)), "decoded"),
    "a program": (script, "known format"),
    "a pipe": (os.mkfifo, "no regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "a film": (film, "more than"),
    "numbers": (
        lambda path: Image.new("F", (9, 9), 0.5).save(path, "TIFF"),
        "floating-point",
    ),
}


@pytest.mark.parametrize(("write", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_is_refused_before_it_takes_memory(tmp_path, write, reason):
    path = tmp_path / "odd.jpg"
    write(path)
    with pytest.raises(UserError, match=rf"odd\.jpg.*({reason})"):
        open_rgb(path)


# Pixels.


def pixels(path, image, **options):
    """The pixels of an image that was saved to a path."""
    image.save(path, **options)
    found = open_rgb(path)
    assert found.mode == "RGB"
    return np.asarray(found)


@pytest.mark.parametrize("name", ["a.heic", "a.HIF", "a.avif"])
def test_phone_pictures_are_decoded_upright(tmp_path, name):
    picture = Image.new("RGB", (64, 48), "red")
    picture.paste("blue", (32, 0, 64, 48))
    kind = "AVIF" if name.endswith("avif") else "HEIF"
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"quality": 90, "exif": exif.tobytes(), "format": kind}
    found = pixels(tmp_path / name, picture, **options)
    assert found.shape == (64, 48, 3)  # a quarter turn: the left side is at the top
    top, bottom = found[8, 24], found[56, 24]
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


def test_cmyk_jpeg_has_its_colours(tmp_path):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan ink only
    found = pixels(tmp_path / "x.jpg", image, quality=100)
    np.testing.assert_allclose(found, np.broadcast_to([0, 255, 255], (16, 16, 3)), atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 256, 25650, 40000, 65535]], np.uint16)
    found = pixels(tmp_path / f"x.{suffix}", Image.fromarray(values))
    np.testing.assert_array_equal(found, np.repeat(values[..., None] // 256, 3, axis=2))


@pytest.mark.parametrize(
    ("min_side", "size"),
    [(None, (640, 480)), (240, (320, 240)), (61, (160, 120)), (60, (80, 60))],
)
def test_a_jpeg_is_decoded_smaller_where_its_shorter_side_allows(tmp_path, min_side, size):
    for name in ("x.jpg", "x.png"):
        Image.new("RGB", (640, 480), "red").save(tmp_path / name)
    assert open_rgb(tmp_path / "x.jpg", min_side=min_side).size == size
    assert open_rgb(tmp_path / "x.png", min_side=min_side).size == (640, 480)
