import io
import stat
import tarfile
import zipfile

import pytest
from support.web import tar, zipped

from latteclip.core.errors import UserError
from latteclip.data import download_dataset

FILES = {"a/one.txt": b"one", "a/b/two.txt": b"two", "three.txt": b""}


@pytest.fixture
def unpacked(tmp_path):
    """Unpacks an archive into a folder, and returns the content of its files by path."""
    folder = tmp_path / "data"
    folder.mkdir()

    def unpack(content):
        (tmp_path / "archive").write_bytes(content)
        download_dataset.unpack(tmp_path / "archive", folder)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return unpack


@pytest.fixture
def outside(tmp_path):
    """A file beside the folder. Nothing may change it, or come to lie there."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine.txt").write_text("mine")
    yield
    assert {path.name for path in tmp_path.iterdir()} == {"data", "archive", "outside"}
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["mine.txt"]
    assert (tmp_path / "outside" / "mine.txt").read_text() == "mine"


def tar_of(*members):
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


def test_a_plain_tar_whose_last_file_is_a_zip_is_a_tar(unpacked):
    assert list(unpacked(tar({"inner.zip": zipped(FILES)}, "w"))) == ["inner.zip"]


OUTSIDE = ["../evil", "a/../../evil", "/evil", "..", "..\\evil", "C:\\evil", "a\\..\\..\\x"]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("name", OUTSIDE)
def test_refuses_entries_that_lead_out(unpacked, pack, name):
    with pytest.raises(UserError, match="leads out"):
        unpacked(pack({name: b"evil"}))


LINKS = {
    "symlink up": [member("link", tarfile.SYMTYPE, "../outside")],
    "absolute symlink": [member("link", tarfile.SYMTYPE, "/etc/passwd")],
    "hard link up": [member("link", tarfile.LNKTYPE, "../outside/mine.txt")],
    "absolute hard link": [member("link", tarfile.LNKTYPE, "/etc/passwd")],
    "a link below a link": [
        member("link", tarfile.SYMTYPE, "../outside"),
        member("link/new/deep", tarfile.SYMTYPE, "x"),
    ],
    "links that lead out together": [
        member("a/b/far", tarfile.SYMTYPE, "near/../../../outside"),
        member("a/b/near", tarfile.SYMTYPE, "../.."),
    ],
    "a file below a link": [
        member("link", tarfile.SYMTYPE, "../outside"),
        member("link/mine.txt", size=3),
    ],
}


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("members", LINKS.values(), ids=LINKS)
def test_refuses_links_that_lead_out(unpacked, members):
    with pytest.raises(UserError, match="leads out"):
        unpacked(tar_of(*members))


@pytest.mark.usefixtures("outside")
def test_a_symlink_in_a_zip_is_no_link(unpacked):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../outside")
    assert unpacked(buffer.getvalue()) == {"link": b"../outside"}


def test_links_inside_the_folder_are_unpacked(unpacked):
    kinds = {"again.txt": tarfile.LNKTYPE, "also.txt": tarfile.SYMTYPE}
    links = [member(name, kind, "a/one.txt") for name, kind in kinds.items()]
    found = unpacked(tar_of(*links, member("a/one.txt", size=3)))
    assert found == dict.fromkeys(["a/one.txt", *kinds], b"xxx")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_refuses_devices(unpacked, kind):
    with pytest.raises(UserError, match="device 'thing'"):
        unpacked(tar_of(member("thing", kind)))


def damaged_header():
    content = bytearray(tar(FILES, "w"))
    content[1024] ^= 1  # of the second file
    return bytes(content)


DAMAGED = {
    "a page": b"<html>not found</html>",
    "no zip": b"PK\x03\x04 but no zip",
    "a damaged header": damaged_header(),
    "a zip cut in two": zipped(FILES)[:200],
    "a tar.gz without its checksum": tar(FILES)[:-6],
    "a tar cut between two files": tar(FILES, "w")[:1024],
    "a hard link to nothing": tar_of(member("link", tarfile.LNKTYPE, "not there")),
}


def with_header(kind, size, n=1):
    """A tar with headers of any length before its file."""
    content = b""
    for number in range(n):
        text = b"%d %04d=" % (size, number)
        text += b"x" * (size - len(text) - 1) + b"\n"
        content += member("h", kind, size=size).tobuf(tarfile.USTAR_FORMAT) + text
        content += bytes(-size % tarfile.BLOCKSIZE)
    return content + tar({"a.txt": b"a"}, "w")


LARGE = {
    "a long pax header": with_header(tarfile.XHDTYPE, 300_000),
    "a long global header": with_header(tarfile.XGLTYPE, 300_000),
    "a long target": with_header(tarfile.GNUTYPE_LONGLINK, 300_000),
    "many global headers": with_header(tarfile.XGLTYPE, 20, n=101),
    "many links": tar_of(*(member(f"{n}", tarfile.SYMTYPE, "x") for n in range(40))),
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_what_tarfile_would_hold_in_memory_is_refused(unpacked, monkeypatch, content):
    monkeypatch.setattr(download_dataset, "MAX_LINKS", 39, raising=False)
    with pytest.raises(UserError, match="archive"):
        unpacked(content)


def test_headers_of_usual_length_are_read(unpacked):
    assert unpacked(with_header(tarfile.XHDTYPE, 20)) == {"a.txt": b"a"}
    long = "/".join(["n" * 200] * 5)
    assert unpacked(tar({long: b"b"}, "w"))[long] == b"b"


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_anything_but_a_whole_archive_is_an_error(unpacked, content):
    with pytest.raises(UserError, match="archive"):
        unpacked(content)
