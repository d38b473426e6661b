"""Cache of decoded images, so that indexing again decodes only new and changed images.

An SQLite file with one writer. An entry counts while the image's path, and its file's size and
time, stay the same.

Letters: N images.
"""

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latteclip.core.errors import UserError
from latteclip.core.hashing import digest
from latteclip.data import fingerprints, images
from latteclip.data.fingerprints import Fingerprint

PATHS_PER_QUERY = 500  # fewer than any SQLite takes
NO_FILE = (-1, -1)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system without locks
CREATE = """
    CREATE TABLE IF NOT EXISTS images (
        path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER,
        width INTEGER, height INTEGER, hashes BLOB, thumbnail BLOB, checksum BLOB
    ) WITHOUT ROWID
"""
FileStats = npt.NDArray[np.int64]  # [N, 2]: size and time in ns of the file that holds an image


class DecodeCache(contextlib.AbstractContextManager["DecodeCache"]):
    """Fingerprints of images by path and file stats."""

    def __init__(self, path: Path) -> None:
        """Open the file, or begin with an empty one where it is damaged or of other code.

        Raises:
            UserError: the file cannot be opened or written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            try:
                self._file = _opened(path)
            except sqlite3.OperationalError:  # the disk, permissions, or another process
                raise
            except sqlite3.DatabaseError:
                for part in (path, path.with_name(f"{path.name}-journal")):
                    part.unlink(missing_ok=True)
                self._file = _opened(path)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, paths: Sequence[str], stats: FileStats) -> list[Fingerprint | None]:
        """Return the fingerprints of N images, None of new and changed images."""
        wanted = dict(zip(paths, map(tuple, stats.tolist()), strict=True))
        found = dict[str, Fingerprint]()
        for start in range(0, len(paths), PATHS_PER_QUERY):
            part = paths[start : start + PATHS_PER_QUERY]
            marks = ",".join("?" * len(part))
            with self._explained():
                rows = self._file.execute(f"SELECT * FROM images WHERE path IN ({marks})", part)
                for path, size, mtime_ns, *values in rows:
                    if wanted[path] == (size, mtime_ns):
                        found[path] = Fingerprint(*values)
        return [found.get(path) for path in paths]

    def put(self, paths: Sequence[str], stats: FileStats, found: Sequence[Fingerprint]) -> None:
        """Write the fingerprints of N images, whose file stats were read before the images."""
        rows = [
            (path, *stat, one.width, one.height, one.hashes, one.thumbnail, one.checksum)
            for path, stat, one in zip(paths, stats.tolist(), found, strict=True)
        ]
        with self._explained(), self._file:
            self._file.executemany(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{self.path}, the cache of decoded images, cannot be used ({error}); free some "
                "space on the disk, or delete the file, and rerun."
            ) from None


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file, and empty it unless the same code and libraries wrote it."""
    file = sqlite3.connect(_uri(path), uri=True)
    try:
        with file:
            current = _code_version()
            if file.execute("PRAGMA user_version").fetchone() != (current,):
                file.execute("DROP TABLE IF EXISTS images")
                file.execute(f"PRAGMA user_version = {current}")
            file.execute(CREATE)
    except sqlite3.Error:
        file.close()
        raise
    return file


def _uri(path: Path) -> str:
    """Return the address of the file. SQLite takes a file system without locks for a locked one."""
    uri = path.absolute().as_uri()
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"{uri}?nolock=1" if error.errno in NO_LOCKS else uri
    return uri


def _code_version() -> int:
    """Return a number of 31 bits for the code and the libraries that decode images."""
    code = [Path(str(module.__file__)).read_bytes() for module in (fingerprints, images)]
    libraries = map(version, ("numpy", "pillow", "pillow_heif"))
    return int(digest(*code, *libraries)[:8], 16) >> 1


def file_stats(paths: Sequence[str]) -> FileStats:
    """Return size and time of the files that hold N images, NO_FILE where there is none."""
    found, last, stat = [], "", NO_FILE
    for path in paths:
        container = images.container_of(path)
        if container != last:  # the images of a shard stand together
            last, stat = container, _file_stat(container)
        found.append(stat)
    return np.array(found, np.int64).reshape(-1, 2)


def _file_stat(path: str) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return NO_FILE
    return state.st_size, state.st_mtime_ns
