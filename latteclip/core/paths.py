"""Names and files that somebody else chose: inside their folder, of a regular kind, readable."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from latteclip.core.errors import UserError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def leads_out(name: str) -> bool:
    """Whether a relative name leaves the folder that it is meant for, on any system."""
    path = PureWindowsPath(name)  # takes both / and \ as separators
    return not name or bool(path.drive or path.root) or ".." in path.parts


def existing(path: str | Path) -> Path:
    """What is there of a path: itself, or the nearest parent, on whose disk it will be."""
    path = Path(path).resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def irregular(path: str | Path) -> str | None:
    """What a file is that may not be opened, since reading it may never end; None if it is regular.

    Raises:
        OSError: there is no such file, or it cannot be looked at.
    """
    return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn what the system says of a file or folder that cannot be read into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}); correct its permissions, or take "
            "it out of its folder."
        ) from None
