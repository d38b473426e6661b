"""Archives, shards and images of strangers: inside their folder, whole or refused."""

import io
import stat
import tarfile
import tempfile
import warnings
import zipfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st
from PIL import Image
from support.fuzz import check, damaged, fuzzed
from support.shards import parquet_bytes
from support.web import tar, zipped

from latteclip.core.errors import UserError
from latteclip.data import archives, images
from latteclip.data.shards import SUFFIXES
from latteclip.data.splits import IndexSettings, read_split

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
        mine = Path(place, "outside", "mine.txt")
        mine.parent.mkdir()
        mine.write_text("mine")
        archive = folder.parent / "archive"
        archive.write_bytes(content)
        try:
            archives.unpack(archive, folder)
        finally:
            assert {path.name for path in Path(place).iterdir()} == {"deep", "outside"}
            assert {path.name for path in folder.parent.iterdir()} == {"data", "archive"}
            assert [*mine.parent.iterdir()] == [mine] and mine.read_text() == "mine"
        paths = list(folder.rglob("*"))
        assert not any(path.is_symlink() for path in paths)
        files = [path for path in paths if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tar_with(*members):
    """A tar of TarInfo objects without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def member(name, kind=tarfile.REGTYPE, target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "a\\..\\..\\x"]
)
def test_names_do_not_lead_out(pack, name):
    try:
        found = unpacked(pack({name: b"evil"}))
    except UserError as error:
        assert "archive" in str(error)
    else:
        assert list(found.values()) == [b"evil"]


LINKS = [
    member("up", tarfile.SYMTYPE, "../../outside"),
    member("absolute", tarfile.SYMTYPE, "/etc/passwd"),
    member("hard", tarfile.LNKTYPE, "../../outside/mine.txt"),
    member("absolute_hard", tarfile.LNKTYPE, "/etc/passwd"),
    member("a/b/far", tarfile.SYMTYPE, "near/../../../../outside"),  # with the next one
    member("a/b/near", tarfile.SYMTYPE, "../.."),
    member("device", tarfile.CHRTYPE),
    member("pipe", tarfile.FIFOTYPE),
    *(member(f"{n}", tarfile.SYMTYPE, "x") for n in range(40)),
    member("up/mine.txt", size=3),  # below a link
]


def test_links_and_devices_are_left_out():
    found = unpacked(tar_with(*LINKS, member("a.txt", size=1)))
    assert found == {"a.txt": b"x", "up/mine.txt": b"xxx"}


def test_a_symlink_in_a_zip_is_no_link():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../../outside")
    assert unpacked(buffer.getvalue()) == {"link": b"../../outside"}


def with_header(kind, size, n=1):
    """A tar with headers of any length before its file."""
    content = b""
    for number in range(n):
        text = b"%d %04d=" % (size, number)
        text += b"x" * (size - len(text) - 1) + b"\n"
        content += member("h", kind, size=size).tobuf(tarfile.USTAR_FORMAT) + text
        content += bytes(-size % tarfile.BLOCKSIZE)
    return content + tar({"a.txt": b"a"}, "w")


REFUSED = {
    "a page": b"<html>not found</html>",
    "no zip": b"PK\x03\x04 but no zip",
    "a damaged header": tar(FILES, "w").replace(b"two.bin", b"tvo.bin"),
    "a zip cut in two": zipped(FILES)[:200],
    "a tar.gz without its checksum": tar(FILES)[:-6],
    "a tar cut between two files": tar(FILES, "w")[:2048],
    # What tarfile would read into memory.
    "a long pax header": with_header(tarfile.XHDTYPE, 300_000),
    "a long global header": with_header(tarfile.XGLTYPE, 300_000),
    "a long target": with_header(tarfile.GNUTYPE_LONGLINK, 300_000),
    "many global headers": with_header(tarfile.XGLTYPE, 20, n=101),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_anything_but_a_whole_archive_is_an_error(content):
    with pytest.raises(UserError, match="archive"):
        unpacked(content)


@fuzzed(content=st.one_of([damaged(content) for content in PACKED.values()]))
def test_a_damaged_archive_is_whole_or_refused(content):
    check(lambda: unpacked(content), FILES)


SHARDS = {
    "webdataset": tar(
        {"1.jpg": b"one", "1.cls": b"0", "2.jpg": b"two", "2.cls": b"1"}, "w"
    ),
    "parquet": parquet_bytes([b"one", b"two"], [0, 1], ["a", "b"]),
}


def read_of_shard(kind, content):
    """The images of a shard with their labels, all of them read."""
    with tempfile.TemporaryDirectory() as place:
        Path(place, f"a{SUFFIXES[kind]}").write_bytes(content)
        Path(place, "classes.txt").write_text("a\nb")
        split = read_split(Path(place), IndexSettings(kind=kind))
        return [
            (_bytes_or_none(Path(place, item.path)), item.label) for item in split.items
        ]


def _bytes_or_none(path):
    try:
        return images.read_bytes(path)
    except (OSError, ValueError):
        return None


@fuzzed(
    case=st.sampled_from(sorted(SHARDS)).flatmap(
        lambda kind: st.tuples(st.just(kind), damaged(SHARDS[kind]))
    )
)
def test_a_damaged_shard_is_read_or_refused(case):
    kind, content = case
    check(lambda: read_of_shard(kind, content))


def test_no_byte_of_a_parquet_file_ends_the_process():
    """Some of what a footer says makes pyarrow call `abort` when it is asked for it."""
    content = SHARDS["parquet"]
    for place in range(0, len(content), 3):
        other = bytearray(content)
        other[place] = (content[place] + 1) % 256
        check(partial(read_of_shard, "parquet", bytes(other)))


def with_rows_of_a_group(content, n):
    """A Parquet file of two rows whose footer says that its row group has n."""
    end = len(content) - 8
    start = end - int.from_bytes(content[end : end + 4], "little")
    # The last of its fields 3 of 8 bytes, in Thrift's compact form, with the value 2.
    place = content.rindex(b"\x16\x04", start, end) + 1
    number = bytes(n * 2 >> shift & 127 | 128 for shift in range(0, 35, 7)) + b"\x00"
    footer = content[start:place] + number + content[place + 1 : end]
    return content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def test_a_row_group_of_more_rows_than_it_can_have_is_refused():
    content = with_rows_of_a_group(
        parquet_bytes([b"one", b"two"], [0, 1], column="other"), 10**10
    )
    assert check(partial(read_of_shard, "parquet", content)) is None


NAMES = st.sampled_from(
    ["a", "a/b", "c", "é", "../x", "/x", "a\0b", "", "n" * 300, "d/" * 90]
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(
        ["path", "linkpath", "size", "GNU.sparse.map", "GNU.sparse.major", "x"]
    ),
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


@fuzzed(entries=MEMBERS)
def test_whatever_the_headers_of_an_archive_or_shard_say_it_stays_in_its_folder(entries):
    check(lambda: unpacked(tar_of(entries)))
    check(lambda: read_of_shard("webdataset", tar_of(entries)))


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
    content=st.one_of([damaged(content) for content in PICTURES.values()]),
    max_side=st.sampled_from([None, 1, 16]),
)
def test_a_damaged_image_is_decoded_or_refused(content, max_side):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what it mends
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(content)
            found = check(lambda: images.open_rgb(file.name, max_side=max_side))
    if found is not None:
        assert found.mode == "RGB" and found.width * found.height <= images.MAX_PIXELS
        assert max_side is None or max(found.size) <= max_side
