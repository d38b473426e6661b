"""What was seen of images that were decoded before: an index that is made again decodes the others.

Kept in an SQLite file, in pieces that are whole or not there, so that what was killed goes on. An
image is as it was if its path, and the size and the time of its file, are. Each entry bears a
checksum, and a damaged one counts for nothing.

Letters: N images.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latteclip.core.errors import UserError
from latteclip.core.hashing import digest
from latteclip.data import fingerprints, images
from latteclip.data.fingerprints import HASHES, THUMBNAIL, Fingerprint
from latteclip.data.folder_files import CHECKSUM

SIZES = struct.Struct("<II")  # width and height; hashes, thumbnail and checksum follow
LENGTH = SIZES.size + HASHES + THUMBNAIL**2 + CHECKSUM
ASKED = 500  # paths of one query: fewer than any SQLite takes
NO_FILE = (-1, -1)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system without
DECISIVE = (fingerprints, images)  # of the code, for what is seen of an image
LIBRARIES = ("numpy", "pillow", "pillow_heif")
CREATE = """
    CREATE TABLE IF NOT EXISTS seen (
        path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, checksum INTEGER, content BLOB
    ) WITHOUT ROWID
"""
Stamps = npt.NDArray[np.int64]  # [N, 2]: of the file that holds an image its size and time in ns


class DecodedBefore:
    """Fingerprints of images by path and stamp, in a file."""

    def __init__(self, path: Path) -> None:
        """Open what is there, or begin anew where it is damaged or of other code.

        Raises:
            UserError: the file cannot be opened or written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            try:
                self.file = _opened(path)
            except sqlite3.OperationalError:  # the disk, permissions, or another process
                raise
            except sqlite3.DatabaseError:
                for part in (path, path.with_name(f"{path.name}-journal")):
                    part.unlink(missing_ok=True)
                self.file = _opened(path)

    def __enter__(self) -> "DecodedBefore":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def find(self, paths: Sequence[str], stamps: Stamps) -> list[Fingerprint | None]:
        """What was seen of N images; None of those that are new, or another file by now."""
        found = dict[str, Fingerprint]()
        wanted = dict(zip(paths, map(tuple, stamps.tolist()), strict=True))
        for start in range(0, len(paths), ASKED):
            part = paths[start : start + ASKED]
            marks = ",".join("?" * len(part))
            with self._told():
                rows = self.file.execute(f"SELECT * FROM seen WHERE path IN ({marks})", part)
                for path, size, mtime_ns, checksum, content in rows:
                    is_whole = checksum == _checksum(path, size, mtime_ns, content)
                    if is_whole and wanted[path] == (size, mtime_ns):
                        found[path] = _unpacked(content)
        return [found.get(path) for path in paths]

    def keep(self, paths: Sequence[str], stamps: Stamps, seen: Sequence[Fingerprint]) -> None:
        """Keep what was seen of N images whose files had these stamps before they were read."""
        rows = []
        for path, (size, mtime_ns), one in zip(paths, stamps.tolist(), seen, strict=True):
            sizes = SIZES.pack(one.width, one.height)
            content = sizes + one.hashes + one.thumbnail + one.checksum
            checksum = _checksum(path, size, mtime_ns, content)
            rows.append((path, size, mtime_ns, checksum, content))
        with self._told(), self.file:
            self.file.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", rows)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{self.path}, which keeps what was seen of images, cannot be used ({error}); see "
                "that there is room on the disk, or delete the file and rerun."
            ) from None


def _opened(path: Path) -> sqlite3.Connection:
    """The file, empty unless this code wrote it."""
    nolock = "" if _has_locks(path) else "?nolock=1"
    file = sqlite3.connect(f"{path.absolute().as_uri()}{nolock}", uri=True)
    try:
        with file:
            file.execute("CREATE TABLE IF NOT EXISTS version (of_code TEXT)")
            own = code_version()
            if file.execute("SELECT of_code FROM version").fetchall() != [(own,)]:
                file.execute("DROP TABLE IF EXISTS seen")
                file.execute("DELETE FROM version")
                file.execute("INSERT INTO version VALUES (?)", [own])
            file.execute(CREATE)
    except sqlite3.Error:
        file.close()
        raise
    return file


def _has_locks(path: Path) -> bool:
    """Whether the file system has the locks that SQLite asks for; the file is made if need be."""
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in NO_LOCKS
    return True


def code_version() -> str:
    """A digest of the code and of the libraries that decide what is seen of an image."""
    code = [Path(str(module.__file__)).read_bytes() for module in DECISIVE]
    return digest(*code, *map(version, LIBRARIES))


def _unpacked(content: bytes) -> Fingerprint:
    places = (SIZES.size, SIZES.size + HASHES, LENGTH - CHECKSUM, LENGTH)
    parts = (content[start:end] for start, end in itertools.pairwise(places))
    return Fingerprint(*SIZES.unpack_from(content), *parts)


def _checksum(path: str, size: object, mtime_ns: object, content: object) -> int:
    """A CRC of an entry; none that was written if the content is not what it was."""
    if not isinstance(content, bytes) or len(content) != LENGTH:
        return -1
    return zlib.crc32(f"{size} {mtime_ns} {path}".encode() + content)


def stamps(paths: Sequence[str]) -> Stamps:
    """The stamps [N, 2] of the files that hold images, NO_FILE where there is none."""
    found, last, stamp = [], "", NO_FILE
    for path in paths:
        container = images.container_of(path)
        if container != last:  # the images of a shard lie together
            last, stamp = container, _stamp(container)
        found.append(stamp)
    return np.array(found, np.int64).reshape(-1, 2)


def _stamp(path: str) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return NO_FILE
    return state.st_size, (state.st_mtime_ns + 2**63) % 2**64 - 2**63  # in 64 bits after 2262
