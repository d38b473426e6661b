"""Archives are unpacked into their folder and nowhere else, whole or not at all."""

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
    """Unpacks an archive into a folder, and returns the content of its files by path.

    Nothing may change, or come to lie, beside the folder.
    """
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine.txt").write_text("mine")

    def unpack(content):
        (tmp_path / "archive").write_bytes(content)
        download_dataset.unpack(tmp_path / "archive", folder)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    yield unpack
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


def link_in_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../outside")
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "a\\..\\..\\x"]
)
def test_names_do_not_lead_out(unpacked, pack, name):
    try:
        found = unpacked(pack({name: b"evil"}))
    except UserError as error:
        assert "archive" in str(error)
    else:
        assert list(found.values()) == [b"evil"]


LINKS = {
    "symlink up": [member("link", tarfile.SYMTYPE, "../outside")],
    "absolute symlink": [member("link", tarfile.SYMTYPE, "/etc/passwd")],
    "hard link up": [member("link", tarfile.LNKTYPE, "../outside/mine.txt")],
    "absolute hard link": [member("link", tarfile.LNKTYPE, "/etc/passwd")],
    "links that lead out together": [
        member("a/b/far", tarfile.SYMTYPE, "near/../../../outside"),
        member("a/b/near", tarfile.SYMTYPE, "../.."),
    ],
    "a file below a link": [
        member("link", tarfile.SYMTYPE, "../outside"),
        member("link/mine.txt", size=3),
    ],
    "a device": [member("link", tarfile.CHRTYPE), member("pipe", tarfile.FIFOTYPE)],
    "many links": [member(f"{n}", tarfile.SYMTYPE, "x") for n in range(40)],
}


@pytest.mark.parametrize("name", LINKS)
def test_links_and_devices_are_left_out(unpacked, name):
    found = unpacked(tar_of(*LINKS[name], member("a.txt", size=1)))
    assert found.pop("a.txt") == b"x"
    assert found in ({}, {"link/mine.txt": b"xxx"})


def test_a_symlink_in_a_zip_is_no_link(unpacked):
    assert unpacked(link_in_zip()) == {"link": b"../outside"}


def damaged_header():
    content = bytearray(tar(FILES, "w"))
    content[1024] ^= 1  # of the second file
    return bytes(content)


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
    "a damaged header": damaged_header(),
    "a zip cut in two": zipped(FILES)[:200],
    "a tar.gz without its checksum": tar(FILES)[:-6],
    "a tar cut between two files": tar(FILES, "w")[:1024],
    # What tarfile would read into memory.
    "a long pax header": with_header(tarfile.XHDTYPE, 300_000),
    "a long global header": with_header(tarfile.XGLTYPE, 300_000),
    "a long target": with_header(tarfile.GNUTYPE_LONGLINK, 300_000),
    "many global headers": with_header(tarfile.XGLTYPE, 20, n=101),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_anything_but_a_whole_archive_is_an_error(unpacked, content):
    with pytest.raises(UserError, match="archive"):
        unpacked(content)
