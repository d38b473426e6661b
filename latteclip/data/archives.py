"""Read archives of strangers: tar files entry by entry, and zip and tar files into a folder."""

import logging
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from latteclip.core.errors import UserError, first_line, full_disk

log = logging.getLogger(__name__)
CHUNK = 2**20  # bytes that are read at once
# A tar's headers: bytes of each, which tarfile reads whole, and number of global ones, at most.
MAX_HEADER = 2**18
MAX_GLOBALS = 100


class HeaderOrEnd(tarfile.TarInfo):
    """A header or the end mark of a tar. tarfile takes anything else for the end as well."""

    @classmethod
    def frombuf(
        cls, buf: bytes | bytearray, encoding: str, errors: str
    ) -> "HeaderOrEnd":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError(
                f"no end mark, or a damaged header: {error}"
            ) from None
        # tarfile reads long headers whole, and the list of the parts of a sparse file.
        if not header.isreg() and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return header

    # Tarfile calls it, by this name alone.
    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file")


def tar_entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar that was opened with HeaderOrEnd.

    An entry that leads back is a ReadError: tarfile would read without end (CVE-2025-8194).
    """
    offset = 0
    while (entry := tar.next()) is not None:
        if entry.size < 0 or tar.offset <= offset:
            raise tarfile.ReadError("an entry leads back to an earlier one")
        if entry.issparse():
            raise tarfile.ReadError("a sparse file")
        if len(tar.pax_headers) > MAX_GLOBALS:
            raise tarfile.ReadError(f"more than {MAX_GLOBALS} global headers")
        offset = tar.offset
        yield entry
        tar.members.clear()  # type: ignore[attr-defined]  # a million take a gigabyte


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file, known by its content, into an existing folder and nowhere else.

    Links and devices are left out: no file is written through a link. Raises UserError where the
    archive is damaged, cut off, or has a name that leads out of the folder.
    """
    try:
        with archive.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        # zipfile removes what leads out of names, and writes links as plain files.
        if is_zip:
            zipfile.ZipFile(archive).extractall(folder)
        else:
            _unpack_tar(archive, folder)
    # Raised by tarfile, zipfile, a compression, or the system.
    except Exception as error:
        if full_disk(error):
            raise
        raise UserError(
            f"{archive} cannot be unpacked ({first_line(error)}): the file is broken or unsafe; "
            "delete it and rerun."
        ) from None


def _unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack the files of a tar up to its end mark and the checksum of its compression."""
    with tarfile.open(archive, tarinfo=HeaderOrEnd) as tar:
        for entry in tar_entries(tar):
            if entry.isreg():
                tar.extract(entry, folder, filter="data")
            elif not entry.isdir():
                log.warning(
                    "%s: left out %r, a link or device.", archive, entry.name[:80]
                )
        while tar.fileobj and tar.fileobj.read(CHUNK):
            pass
