"""List the files of a user's folder that an index reads, and detect changes.

Names, sizes and times of files are compared, and the content of files of which only the time is
new. Imports nothing heavy, since the workflow compares at each start.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from latteclip.core.errors import UserError
from latteclip.core.files import readable
from latteclip.core.folder_names import CLASSES, is_litter

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jpeg", ".jpg", ".png", ".ppm")
) | {".tif", ".tiff", ".webp"}
LINKED = 2  # levels on which links to folders are followed, as class folders may be
CHECKSUM = partial(hashlib.blake2b, digest_size=16)  # hash of a file's content
UNKNOWN = bytes(16)  # the checksum of a file that was not read
THREADS = 8  # that read files of which only the time is new
BATCH = 10_000
_SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")
OTHER = "other"  # in place of a missing or strange suffix


@dataclass
class FolderMetadata:
    """The metadata of FOLDER_FILES."""

    digest: str  # digest of the files' names, sizes and times
    state: str  # the text of `state` that they gave


class File(NamedTuple):
    """A file below a folder."""

    name: str  # relative to the folder
    size: int
    mtime_ns: int


def size_and_time(state: os.stat_result) -> tuple[int, int]:
    """Return size and time of a file, at most the last time that 64 bits hold (in 2262)."""
    return state.st_size, min(state.st_mtime_ns, 2**63 - 1)


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8: bytes that were not are surrogates here."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def inside(name: str, source: Path) -> str:
    """Return a name in a list, shard or folder if it is a path inside the folder of images."""
    path = PurePosixPath(name)
    if (
        not name
        or not is_utf8(name)
        or "\0" in name
        or path.is_absolute()
        or ".." in path.parts
    ):
        raise UserError(
            f"{source}: {name!r} is not a path in UTF-8 inside the folder of images (split.images "
            "sets that folder)."
        )
    return name


def _entries(
    folder: str, *, deep: bool, linked: int = 0, prefix: str = ""
) -> Iterator[tuple[str, str, os.DirEntry[str]]]:
    """Yield names, suffixes and entries of files in one order, by links on `linked` levels."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    folders = []
    for entry in ordered:
        if is_litter(entry.name):
            continue
        if not entry.is_dir():
            yield prefix + entry.name, os.path.splitext(entry.name)[1].lower(), entry
        elif deep and (linked > 0 or not entry.is_symlink()):
            folders.append(entry)
    for entry in folders:
        name = f"{prefix}{entry.name}/"
        yield from _entries(entry.path, deep=True, linked=linked - 1, prefix=name)


def files(folder: str, kind: str, classes: str | None = None) -> Iterator[File]:
    """Yield the files that an index of a folder reads, always in the same order.

    With `split.kind` "folders" these are images and lists of classes, otherwise all files.
    """
    with readable():
        for name, suffix, entry in _entries(folder, deep=True, linked=LINKED):
            counts = suffix in IMAGE_SUFFIXES or name in (CLASSES, classes)
            if (counts or kind != "folders") and entry.is_file():
                state = entry.stat()
                yield File(name, *size_and_time(state))


def image_files(
    folder: str | Path, skipped: Counter[str] | None = None, *, deep: bool
) -> list[Path]:
    """Return the image files in a folder, or also below it, sorted by path, without litter.

    Other files but classes.txt are counted in `skipped` by suffix in lower case, or as OTHER.
    """
    paths = []
    with readable():
        for name, suffix, entry in _entries(os.fspath(folder), deep=deep):
            if suffix in IMAGE_SUFFIXES:
                paths.append(Path(folder, name))
            elif skipped is not None and entry.name != CLASSES:
                skipped[suffix if _SUFFIX.fullmatch(suffix) else OTHER] += 1
    return sorted(paths)


def digest(files: Iterable[File]) -> str:
    """Return a digest of names, sizes and times."""
    state = hashlib.sha256()
    for name, size, mtime_ns in files:
        state.update(os.fsencode(f"{name}\0{size}\0{mtime_ns}\0"))
    return state.hexdigest()


def checksum(path: str | Path) -> bytes:
    """Return a checksum of a file's content, UNKNOWN where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, CHECKSUM).digest()
    except OSError:
        return UNKNOWN


def link(folder: str, place: str) -> str:
    """Let the link `place` lead to a folder, and return it, or the folder where links fail.

    An index names its images by the link, so that a folder that moved changes no path.
    """
    target = folder
    if not os.path.isabs(folder):  # then the link still leads there when both move
        target = os.path.relpath(folder, os.path.realpath(os.path.dirname(place)))
    if os.path.islink(place) and os.readlink(place) == target:
        return place
    temporary = f"{place}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, place)
    except OSError as error:
        log.warning("%s cannot be a link to %s (%s).", place, folder, error.strerror)
        return folder
    return place


def linked(place: str) -> str:
    """Return the folder to which a link leads, or the folder itself if it is no link."""
    if not os.path.islink(place):
        return place
    return os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))


def state_before(indexed: str) -> str | None:
    """Return the `state` of a folder at its last index, None before the first."""
    from latteclip.core import tables

    if not os.path.isfile(indexed):
        return None
    try:
        return tables.read_metadata(indexed, FolderMetadata).state
    except UserError:  # the images are indexed again
        return None


def state(folder: str, kind: str, classes: str | None, indexed: str) -> str:
    """Return a text for the files of a folder, another one where a name or content changed.

    `indexed` is the table of the files of the last index (`write`), which notes new times.
    """
    new = digest(files(folder, kind, classes))
    if not os.path.isfile(indexed):
        return new
    from latteclip.core import tables

    try:
        metadata = tables.read_metadata(indexed, FolderMetadata)
        before = metadata.state
        if metadata.digest == new:
            return before
        table = tables.read(indexed, tables.FOLDER_FILES)
    except UserError:  # the images are indexed again
        return new
    now = list(files(folder, kind, classes))
    names, sizes, times, checksums = (column.to_pylist() for column in table.columns)
    if [os.fsencode(f.name) for f in now] != names or [f.size for f in now] != sizes:
        return new
    touched = [row for row, file in enumerate(now) if file.mtime_ns != times[row]]
    if len(touched) >= BATCH:
        log.warning("%d files of %s have a new time; comparing them.", len(touched), folder)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(touched), BATCH):
            part = touched[start : start + BATCH]
            paths = (os.path.join(folder, now[row].name) for row in part)
            if list(pool.map(checksum, paths)) != [checksums[row] for row in part]:
                return new
    write(indexed, now, before, checksums)
    return before


def write(path: str, files: list[File], state: str, checksums: Sequence[bytes]) -> None:
    """Write the table of files, with checksums of their content and the `state` before that."""
    from latteclip.core import tables

    columns = {
        "name": [os.fsencode(file.name) for file in files],
        "size": [file.size for file in files],
        "mtime_ns": [file.mtime_ns for file in files],
        "checksum": checksums,
    }
    tables.write(path, columns, tables.FOLDER_FILES, FolderMetadata(digest(files), state))
