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
def folder(tmp_path):
    """Where archives are unpacked; what is beside it must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept.txt").write_text("kept")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def saved(folder, content, name="archive"):
    path = folder.parent / name
    path.write_bytes(content)
    return path


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def untouched(folder):
    """Nothing but the archive and its folder was added beside the folder."""
    beside = {str(p.relative_to(folder.parent)) for p in folder.parent.rglob("*")}
    inside = {name for name in beside if name.startswith("data")}
    return (
        beside - inside == {"archive", "outside", "outside/kept.txt"}
        and (folder.parent / "outside" / "kept.txt").read_text() == "kept"
    )


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


def test_a_plain_tar_whose_last_file_is_a_zip_is_a_tar(folder):
    download_dataset.unpack(saved(folder, tar({"inner.zip": zipped(FILES)}, "w")), folder)
    assert list(tree(folder)) == ["inner.zip"]


OUTSIDE = [
    "../evil",
    "a/../../evil",
    "/evil",
    "..",
    "..\\evil",
    "C:\\evil",
    "\\evil",
    "a\\..\\..\\x",
]


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("name", OUTSIDE)
def test_refuses_entries_that_lead_out(folder, pack, name):
    with pytest.raises(UserError, match="leads out"):
        download_dataset.unpack(saved(folder, pack({name: b"evil"})), folder)
    assert untouched(folder)


LINKS = {
    "symlink up": [member("link", tarfile.SYMTYPE, "../outside")],
    "absolute symlink": [member("link", tarfile.SYMTYPE, "/etc/passwd")],
    "hard link up": [member("link", tarfile.LNKTYPE, "../outside/kept.txt")],
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
        member("link/kept.txt", size=3),
    ],
}


@pytest.mark.parametrize("members", LINKS.values(), ids=LINKS)
def test_refuses_links_that_lead_out(folder, members):
    with pytest.raises(UserError, match="leads out"):
        download_dataset.unpack(saved(folder, tar_of(*members)), folder)
    assert untouched(folder)


def test_a_symlink_in_a_zip_is_no_link(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../outside")
    download_dataset.unpack(saved(folder, buffer.getvalue()), folder)
    assert not (folder / "link").is_symlink() and untouched(folder)


def test_links_inside_the_folder_are_kept(folder):
    content = tar_of(
        member("again.txt", tarfile.LNKTYPE, "a/one.txt"),
        member("also", tarfile.SYMTYPE, "a"),
        member("a/one.txt", size=3),
    )
    download_dataset.unpack(saved(folder, content), folder)
    assert (folder / "again.txt").read_bytes() == b"xxx"
    assert (folder / "also" / "one.txt").read_bytes() == b"xxx"


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_refuses_devices(folder, kind):
    with pytest.raises(UserError, match="device 'thing': refused"):
        download_dataset.unpack(saved(folder, tar_of(member("thing", kind))), folder)
    assert not list(folder.iterdir())


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


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_anything_but_a_whole_archive_is_an_error(folder, content):
    with pytest.raises(UserError, match="archive"):
        download_dataset.unpack(saved(folder, content), folder)
