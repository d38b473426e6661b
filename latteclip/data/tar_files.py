"""A tar, compressed or not, read once from its first byte to its last and within bounds.

tarfile alone takes as much memory as a header asks for, takes a damaged header for the end of the
tar, and never reaches what follows its end mark, where a compression keeps its last checksum.
"""

import bz2
import contextlib
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

MAX_HEADER = 2**20  # bytes that describe one entry: its long name, attributes, map of holes
MAX_GLOBAL = 100  # attributes of all entries
XZ_MEMORY = 2**28  # bytes for the decompression of xz: four times what its level 9 takes
CHUNK = 2**20
GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
Open = Callable[[], IO[bytes]]


def members(
    archive: Path, spend: Callable[[int], None], *, skim: bool = False
) -> Iterator[tuple[tarfile.TarInfo, Open]]:
    """The entries in order, each with what opens its content until the next one is asked for.

    Args:
        archive: the file; what it is decides how it is decompressed, not its name.
        spend: told of all bytes of the decompressed tar that are read, and stops what takes too
            many.
        skim: pass over content that nobody asks for, which a tar without compression allows.

    Raises:
        Exception: of tarfile, of a compression or of the system; the tar is broken.
    """
    with archive.open("rb") as file:
        stream: Any = _Stream(file if skim else _decompressed(file), spend, skim)
        with stream.in_header():
            tar = tarfile.TarFile(fileobj=stream)
        while True:
            with stream.in_header():
                member = tar.next()
            if member is None:
                break
            if len(tar.pax_headers) > MAX_GLOBAL:
                raise tarfile.ReadError(f"it has more than {MAX_GLOBAL} attributes of its own")
            yield member, partial(_content, tar, member)
            tar.members.clear()  # type: ignore[attr-defined]  # a million take a gigabyte
        stream.finish()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.ExtractError(f"{member.name} is not a file")
    return file


def _decompressed(file: IO[bytes]) -> Any:
    """What has `read(size)`, which gives fewer bytes at the end alone."""
    start = file.read(len(XZ))
    file.seek(0)
    if start.startswith(GZIP):
        return gzip.GzipFile(fileobj=file)
    if start.startswith(BZIP2):
        return bz2.BZ2File(file)
    return _Xz(file) if start == XZ else file


class _Stream:
    """A tar as tarfile reads it, which can only go forwards."""

    def __init__(self, file: Any, spend: Callable[[int], None], skims: bool) -> None:
        self.file, self.spend, self.skims = file, spend, skims
        self.position = 0
        self.last = b""  # what was read last
        self.header_left: int | None = None  # bytes, while a header is read

    @contextlib.contextmanager
    def in_header(self) -> Iterator[None]:
        """Bound what is read meanwhile."""
        self.header_left = MAX_HEADER
        yield
        self.header_left = None

    def read(self, size: int) -> bytes:
        if self.header_left is not None:
            self.header_left -= size
            if self.header_left < 0:
                raise tarfile.ReadError(f"an entry has a header of more than {MAX_HEADER} bytes")
        self.last = self.file.read(size)
        self.position += len(self.last)
        self.spend(len(self.last))
        return self.last

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("an entry leads back to an earlier one")
        if self.skims:  # beyond the end tarfile finds nothing to read
            self.position = self.file.seek(position)
        while position > self.position:
            chunk = self.file.read(min(CHUNK, position - self.position))
            if not chunk:
                raise tarfile.ReadError("unexpected end of data")
            self.position += len(chunk)
            self.spend(len(chunk))

    def finish(self) -> None:
        """Read the rest, whose checksums then count.

        Raises:
            ReadError: tarfile stopped elsewhere than at the end mark, which is two blocks of zeros.
        """
        if self.last != bytes(tarfile.BLOCKSIZE) or any(self.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("it has no end mark, or a damaged header")
        while self.read(CHUNK):
            pass


class _Xz:
    """What an xz file holds; `lzma.open` would take as much memory as the file asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def read(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size and (piece := self._piece(size - len(content))):
            content += piece
        return bytes(content)

    def _piece(self, size: int) -> bytes:
        """At most `size` bytes, and at least one before the end."""
        while True:
            if self.stream.eof:
                more = (self.stream.unused_data or self.file.read(CHUNK)).lstrip(b"\0")  # padding
                if not more:
                    return b""
                self.stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            else:
                more = self.file.read(CHUNK) if self.stream.needs_input else b""
                if self.stream.needs_input and not more:
                    raise EOFError("the compressed file is cut off")
            if piece := self.stream.decompress(more, size):
                return piece
