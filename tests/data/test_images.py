import os
import struct
import zlib

import pytest
from PIL import Image, JpegImagePlugin
from support.image_folders import folders, index
from support.web import jpeg

from latteclip.core.errors import UserError
from latteclip.data import images
from latteclip.data.images import open_or_reason, open_rgb


def saved(path, size, **options):
    Image.new("RGB", size).save(path, **options)
    return path


def test_a_side_that_would_shrink_to_nothing_keeps_a_pixel(tmp_path):
    path = saved(tmp_path / "thin.jpg", (10, 9000))
    assert open_rgb(path, max_side=100).size == (1, 100)


@pytest.mark.parametrize("size", [(1, 6000), (6000, 1)])
def test_an_image_like_a_thread_is_refused(tmp_path, size):
    reason = open_or_reason(saved(tmp_path / "thread.jpg", size))
    assert f"{size[0]} x {size[1]}" in reason


def png(width, height):
    """The head of a picture of any size: what a bomb is made of."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize("size", [(12000, 12000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(*size) + bytes(100))
    assert isinstance(open_or_reason(tmp_path / "bomb.png"), str)
    with pytest.raises(UserError, match="cannot be decoded"):
        open_rgb(tmp_path / "bomb.png")


def test_what_runs_programs_is_no_image(tmp_path):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (9, 9)).save(tmp_path / "script.eps")
    (tmp_path / "script.eps").rename(tmp_path / "script.jpg")
    assert "known format" in open_or_reason(tmp_path / "script.jpg")


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


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_a_broken_phone_picture_is_listed(tmp_path, suffix):
    root = folders(tmp_path / "d")
    whole = tmp_path / f"whole.{suffix}"
    Image.effect_noise((128, 128), 90).convert("RGB").save(whole, quality=90)
    content = whole.read_bytes()
    (root / "cat" / f"half.{suffix}").write_bytes(content[: len(content) // 2])
    (root / "cat" / f"text.{suffix}").write_text("no image at all")
    rows, _, corrupt = index(root, tmp_path, max_corrupt=0.5)
    assert len(rows) == 20
    assert [row["image_id"] for row in corrupt] == [f"cat/half.{suffix}", f"cat/text.{suffix}"]
    assert all(row["reason"] for row in corrupt)


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_a_phone_picture_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch, suffix):
    root = folders(tmp_path / "d")
    phone_picture(root / "cat" / f"large.{suffix}")
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(UserError, match="64 x 48"):
        open_rgb(root / "cat" / f"large.{suffix}")
