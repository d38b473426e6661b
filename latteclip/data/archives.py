"""Unpacking of archives that nobody vouches for: inside the folder and within a bound."""

import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from latteclip.core.errors import UserError
from latteclip.core.files import leads_out
from latteclip.core.terminal import Progress
from latteclip.data import tar_files

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_SWELL = 20.0  # photographs hardly compress: the ten datasets stay below 2
ALLOWANCE = 100 * 2**20  # bytes that any archive may unpack to, however small it is
ENTRY_COST = 1024  # bytes that an entry counts at least: millions of empty files are a bomb as well
CHUNK = 2**20
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
TAR_KINDS = {
    **dict.fromkeys(tarfile.REGULAR_TYPES, "file"),
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
}
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile bounds no other's memory
MAX_TARGET = 4096  # bytes of a link's target: no system has longer paths
MAX_DEPTH = 100  # folders in each other


@dataclass(frozen=True)
class Entry:
    """One entry of an archive."""

    name: str
    kind: str  # file, folder, symlink, hardlink or device
    open: Callable[[], IO[bytes]]  # of a file
    target: str = ""  # of a link


class Budget:
    """Bytes that an archive, with the archives inside it, may still unpack to."""

    def __init__(self, archive: Path, max_swell: float) -> None:
        self.archive, self.max_swell = archive, max_swell
        self.limit = int(archive.stat().st_size * max_swell) + ALLOWANCE
        self.used = 0

    def spend(self, n: int) -> None:
        """Count `n` more bytes; UserError beyond the limit."""
        self.used += n
        if self.used > self.limit:
            raise UserError(
                f"{self.archive} swells beyond {self.limit / 2**20:.0f} MB "
                f"({self.max_swell:g} times its size and {ALLOWANCE // 2**20} MB): it may be a zip "
                "bomb; set max_swell of this download higher if it is meant to."
            )


def is_archive(name: str) -> bool:
    """Whether a file of this name is to be unpacked."""
    return name.lower().endswith(SUFFIXES)


def unpack(
    archive: Path, folder: Path, *, nested: Sequence[str] = (), max_swell: float = MAX_SWELL
) -> None:
    """Unpack `archive` into `folder`; whoever calls makes it whole or nothing.

    Args:
        archive: a zip or tar file; what it is decides, not its name.
        folder: existing; nothing is written outside.
        nested: names of archives inside, unpacked where they lie, wherever that is, and removed.
        max_swell: unpacked bytes for each packed one, beyond ALLOWANCE.

    Raises:
        UserError: the archive is broken, unsafe, or swells beyond the bound.
    """
    budget = Budget(archive, max_swell)
    _unpack(archive, folder, budget)
    for name in nested:
        for inner in sorted(path for path in folder.rglob(name) if not path.is_symlink()):
            _unpack(inner, inner.parent, budget)
            inner.unlink()


def _unpack(archive: Path, folder: Path, budget: Budget) -> None:
    progress = Progress(None, "B unpacked", scale=True)  # a compressed tar does not say how much
    links = []
    try:
        for entry in _entries(archive, budget.max_swell):
            budget.spend(ENTRY_COST)
            place = folder / _safe(entry.name, archive)
            if entry.kind == "device":
                raise UserError(f"{archive} holds the device {entry.name!r}: refused.")
            if entry.kind == "folder":
                place.mkdir(parents=True, exist_ok=True)
            elif entry.kind == "file":
                _write(entry, place, budget, progress)
            else:
                links.append((entry, place))
        _link(links, folder, archive)
    except UserError:
        raise
    except Exception as error:  # of tarfile, zipfile, a compression, or the system
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise UserError(
            f"{archive} cannot be unpacked ({reason}); if there is enough "
            "disk space, the file is broken: delete it and rerun."
        ) from None


def _safe(name: str, archive: Path) -> str:
    """`name`, if it stays in the folder on any system; UserError otherwise."""
    if leads_out(name):
        raise UserError(f"{archive} holds {name!r}, which leads out of its folder: refused.")
    if name.count("/") > MAX_DEPTH:
        raise UserError(
            f"{archive} holds {name[:80]!r}..., over {MAX_DEPTH} folders deep: refused."
        )
    return name


def _write(entry: Entry, place: Path, budget: Budget, progress: Progress) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as source, place.open("wb") as target:
        while chunk := source.read(CHUNK):
            budget.spend(len(chunk))
            target.write(chunk)
            progress.add(len(chunk))


def _link(links: Sequence[tuple[Entry, Path]], folder: Path, archive: Path) -> None:
    """Make the links after all files, so that no file is ever written through one.

    Checked when all are there: what one link leads to may depend on another.
    """
    root = Path(os.path.realpath(folder))

    def check(entry: Entry, place: Path) -> None:
        if os.path.isabs(entry.target) or not Path(os.path.realpath(place)).is_relative_to(root):
            raise UserError(
                f"{archive} holds a link that leads out of its folder: {entry.name!r} -> "
                f"{entry.target!r}; refused."
            )

    for entry, place in links:
        check(entry, place.parent)  # it may be a link that was made a moment ago
        place.parent.mkdir(parents=True, exist_ok=True)
        hard = entry.kind == "hardlink"  # names its target from the top of the archive
        target = os.path.relpath(folder / entry.target, place.parent) if hard else entry.target
        place.symlink_to(target)
    for entry, place in links:
        check(entry, place)
        try:
            place.stat()
        except FileNotFoundError:  # what only a symbolic link may lead to
            if entry.kind == "hardlink":
                raise


def _entries(archive: Path, max_swell: float) -> Iterator[Entry]:
    with archive.open("rb") as file:
        # zipfile.is_zipfile would take a tar that holds a zip for one
        is_zip = file.read(4) in ZIP_MAGIC
    return _zip_entries(archive) if is_zip else _tar_entries(archive, max_swell)


def _tar_entries(archive: Path, max_swell: float) -> Iterator[Entry]:
    read = Budget(archive, max_swell)  # apart from what is written: holes are not in the tar
    for member, content in tar_files.members(archive, read.spend):
        yield Entry(member.name, TAR_KINDS.get(member.type, "device"), content, member.linkname)


def _zip_entries(archive: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            if info.compress_type not in ZIP_METHODS:
                raise zipfile.BadZipFile(f"{info.filename} is neither stored nor deflated")
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode == stat.S_IFLNK:
                target = _target(zipped, info)
                yield Entry(info.filename, "symlink", partial(zipped.open, info), target)
                continue
            kind = "folder" if info.is_dir() else "file" if mode in (0, stat.S_IFREG) else "device"
            yield Entry(info.filename, kind, partial(zipped.open, info))


def _target(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """What a symbolic link leads to: its content, whatever size that says to have."""
    with zipped.open(info) as file:
        target = file.read(MAX_TARGET + 1)
    if len(target) > MAX_TARGET:
        raise zipfile.BadZipFile(f"the link {info.filename} has more than {MAX_TARGET} bytes")
    return target.decode(errors="surrogateescape")
