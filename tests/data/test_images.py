import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb, read_and_decode


def saved(path, size):
    return saved_as(path, Image.new("RGB", size))


def saved_as(path, image, **options):
    image.save(path, **options)
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


@pytest.mark.parametrize("error", [struct.error("4 bytes"), MemoryError(), ValueError("")])
def test_whatever_a_decoder_raises_is_a_broken_image(tmp_path, monkeypatch, error):
    def broken(image):
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", broken)
    path = saved(tmp_path / "odd.jpg", (99, 9))
    reason = read_and_decode(path)
    assert isinstance(reason, str) and reason and type(error).__name__ not in reason
    with pytest.raises(UserError, match=r"odd\.jpg"):
        open_rgb(path)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zeros.jpg"):
        assert "no regular file" in read_and_decode(tmp_path / name)
        with pytest.raises(UserError, match=name):
            open_rgb(tmp_path / name)


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "film.jpg").open("wb") as file:
        file.truncate(2**40)
    assert "more than" in read_and_decode(tmp_path / "film.jpg")


# What phones write.


@pytest.mark.parametrize("name", ["a.heic", "a.HIF", "a.avif"])
def test_phone_pictures_are_decoded_upright(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: the left side is at the top
    kind = "AVIF" if name.endswith("avif") else "HEIF"
    picture = Image.new("RGB", (64, 48), "red")
    picture.paste("blue", (32, 0, 64, 48))
    picture.save(tmp_path / name, quality=90, exif=exif.tobytes(), format=kind)
    decoded = open_rgb(tmp_path / name)
    assert decoded.size == (48, 64)
    top, bottom = (decoded.getpixel((24, y)) for y in (8, 56))
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


# Pixels.


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
    [(None, (640, 480)), (240, (320, 240)), (61, (160, 120)), (60, (80, 60))],
)
def test_a_jpeg_is_decoded_smaller_where_its_shorter_side_allows(tmp_path, min_side, size):
    picture = Image.fromarray(ramp(480, 640, 3))
    assert open_rgb(saved_as(tmp_path / "x.jpg", picture), min_side=min_side).size == size
    assert open_rgb(saved_as(tmp_path / "x.png", picture), min_side=min_side).size == (
        640,
        480,
    )
