import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from latteclip.captions.bare_files import bare

SECRET = b"48.2082 N 16.3738 E"


def picture(seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
    return small.resize((83, 61), Image.Resampling.BICUBIC)


def exif():
    """EXIF with a place and a preview."""
    tags = Image.Exif()
    tags[0x010E] = SECRET.decode()
    tags.get_ifd(0x8825).update({1: "N", 2: (48.0, 12.0, 29.0), 29: SECRET.decode()})
    return tags


def jpeg(**options):
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png(**options):
    buffer = io.BytesIO()
    picture().save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_segment(content, marker, data):
    """A JPEG with one more segment behind its first two bytes."""
    length = (len(data) + 2).to_bytes(2, "big")
    return content[:2] + bytes([0xFF, marker]) + length + data + content[2:]


def notes():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", SECRET.decode())
    texts.add_itxt("Place", SECRET.decode(), zip=False)
    return texts


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FILES = {
    "jpeg": jpeg(),
    "exif": jpeg(exif=exif()),
    "comment": jpeg(comment=SECRET),
    "profile": jpeg(icc_profile=PROFILE + SECRET),
    "xmp": jpeg(xmp=SECRET),
    "progressive": jpeg(progressive=True, exif=exif()),
    "full colour": jpeg(subsampling=0, quality=100, exif=exif()),
    "restarts": jpeg(restart_marker_rows=1, exif=exif()),
    "kept rgb": jpeg(keep_rgb=True, exif=exif()),
    "optimised": jpeg(optimize=True, exif=exif()),
    "trailer": jpeg() + SECRET + jpeg(),
    "app13": with_segment(jpeg(), 0xED, SECRET),
    "app0 preview": with_segment(jpeg(), 0xE0, b"JFXX\0\x10" + SECRET),
    "filled": jpeg()[:2] + b"\xff\xff" + with_segment(jpeg(), 0xED, SECRET)[2:],
    "png": png(),
    "png exif": png(exif=exif()),
    "png texts": png(pnginfo=notes()),
    "png profile": png(icc_profile=PROFILE + SECRET),
    "png trailer": png() + SECRET,
}


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_stay_and_all_else_goes(name):
    content = FILES[name]
    left = bare(content)
    assert np.array_equal(pixels(left), pixels(content))
    assert SECRET not in left
    info = Image.open(io.BytesIO(left))
    info.load()
    assert not set(info.info) & {"exif", "comment", "icc_profile", "xmp", "photoshop", "Comment"}
    assert len(info.getexif()) == 0
    assert bare(left) == left


def test_what_needs_no_change_gets_none():
    """But for colour profiles and the like nothing of a file is touched."""
    assert bare(FILES["jpeg"]) == FILES["jpeg"]
    assert bare(FILES["png"]) == FILES["png"]


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png"])
def test_a_file_that_is_not_whole_is_left_to_the_decoder(name):
    content = FILES[name]
    for length in range(0, len(content) - 1, 7):
        assert bare(content[:length]) is None
    assert bare(b"GIF89a") is None


@settings(deadline=None)
@given(st.sampled_from(["restarts", "progressive", "png texts"]), st.data())
def test_damage_gives_the_same_picture_or_none(name, data):
    """Whatever is flipped: what is left is a part of the file, and shows what the file shows."""
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    left = bare(bytes(content))
    if left is None:
        return
    assert len(left) <= len(content)
    try:
        before = pixels(bytes(content))
    except Exception:  # such a file is not sent
        return
    assert np.array_equal(pixels(left), before)
