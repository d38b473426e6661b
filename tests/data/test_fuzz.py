import io
import os
import tarfile
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import strategies as st
from PIL import Image
from support.fuzz import check, damaged, fuzzed
from support.web import tar, zipped

from latteclip.data import archives, images

FILES = {"a/one.txt": b"one " * 300, "a/b/two.bin": bytes(range(256)) * 3, "three.txt": b""}
PACKED = {
    "tar.gz": tar(FILES),
    "tar.bz2": tar(FILES, "w:bz2"),
    "tar.xz": tar(FILES, "w:xz"),
    "zip": zipped(FILES),
}


def unpacked(content):
    """What an archive unpacks to, by path; AssertionError where it touches anything else."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "deep", "data")
        folder.mkdir(parents=True)
        archive = folder.parent / "archive"
        archive.write_bytes(content)
        try:
            archives.unpack(archive, folder)
        finally:
            assert {path.name for path in Path(place).iterdir()} == {"deep"}
            assert {path.name for path in folder.parent.iterdir()} == {"data", "archive"}
        assert all(
            Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
            for path in folder.rglob("*")
        )
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


CASES = st.sampled_from(sorted(PACKED)).flatmap(
    lambda kind: st.tuples(st.just(kind), damaged(PACKED[kind]))
)


@fuzzed(case=CASES)
def test_a_damaged_archive_is_whole_or_refused(case):
    kind, content = case
    check(f"archive {kind}", lambda: unpacked(content), FILES)


@fuzzed(content=damaged(tar(FILES, "w")))
def test_a_damaged_tar_stays_in_its_folder(content):
    """It has checksums of headers alone: a changed file goes unnoticed, a missing one does not."""
    found = check("archive tar", lambda: unpacked(content))
    assert found is None or len(found) == len(FILES)


NAMES = st.sampled_from(["a", "a/b", "c", "é", "../x", "/x", "a\0b", "", "n" * 300, "d/" * 90])
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["path", "linkpath", "size", "GNU.sparse.map", "GNU.sparse.major", "x"]),
    st.text(st.sampled_from("../ab19,-"), max_size=12),
    max_size=1,
)
NO_CONTENT = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
MEMBERS = st.lists(
    st.builds(
        dict,
        name=NAMES,
        linkname=NAMES,
        type=st.sampled_from([bytes([kind]) for kind in b"0000555122xgLKS3467DVN"]),
        size=st.sampled_from([0, 0, 12, 12, 512, 700, 2**33, 2**60]),
        pax_headers=ATTRIBUTES,
    ),
    max_size=5,
)


def tar_of(members):
    """A tar whose headers have right checksums, whatever they say."""
    content = b""
    for values in members:
        info = tarfile.TarInfo()
        for key, value in values.items():
            setattr(info, key, value)
        content += info.tobuf(tarfile.PAX_FORMAT)
        if info.type not in NO_CONTENT:
            content += b"12 path=a/b\n"[: info.size].ljust(
                -(-min(info.size, 700) // 512) * 512, b"\0"
            )
    return content + bytes(1024)


@fuzzed(members=MEMBERS)
def test_whatever_the_headers_of_a_tar_say_it_stays_in_its_folder(members):
    check("archive headers", lambda: unpacked(tar_of(members)))


def picture(form):
    """A small image file of a format, with an orientation and metadata where it has them."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    Image.effect_noise((40, 24), 60).convert("RGB").save(buffer, form, **options)
    return buffer.getvalue()


PICTURES = {form: picture(form) for form in images.FORMATS}


@fuzzed(
    case=st.sampled_from(sorted(PICTURES)).flatmap(
        lambda form: st.tuples(st.just(form), damaged(PICTURES[form]))
    ),
    max_side=st.sampled_from([None, 1, 16]),
)
def test_a_damaged_image_is_decoded_or_refused(case, max_side):
    form, content = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what it mends
        found = check(
            f"image {form}",
            lambda: images.open_rgb("x", content=io.BytesIO(content), max_side=max_side),
        )
    if found is not None:
        assert found.mode == "RGB" and found.width * found.height <= images.MAX_PIXELS
        assert max_side is None or max(found.size) <= max_side


@pytest.mark.parametrize("kind", PACKED)
def test_whole_archives_are_unpacked(kind):
    """Or the tests above would show nothing."""
    assert unpacked(PACKED[kind]) == FILES


@pytest.mark.parametrize("form", PICTURES)
def test_whole_images_are_decoded(form):
    assert images.open_rgb("x", content=io.BytesIO(PICTURES[form])).mode == "RGB"
