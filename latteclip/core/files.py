"""Files: written whole or not at all, JSON read back, and paths that somebody else chose."""

import contextlib
import errno
import glob
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from latteclip.core.errors import DELETE_AND_RERUN, UserError

LONGEST_NAME = 255  # bytes, as file systems have it
DAY = 24 * 60 * 60  # seconds after which nobody writes to what another machine began
# Why a place cannot be written, where the path is to blame and not the disk.
BAD_PLACE = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}


LARGEST_JSON = 2**27  # bytes; of what is written here only the history of a training comes near
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@contextlib.contextmanager
def replacing(path: str | Path, *, anew: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it takes the place of `path`.

    The body may create a file or a folder under that name. When the body raises, what it wrote is
    removed and `path` stays as it was. What killed processes left of the same is removed first.

    Args:
        path: of a file or a folder.
        anew: whatever has the name is the caller's, and a folder may replace it.

    Raises:
        UserError: `path` is a folder with content, or a file where the body made a folder, or its
            place cannot be written.
    """
    path = Path(path)
    if not anew:
        refuse_folder(path)
    # Machines that share a file system may have processes of the same number.
    name = f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(f"{path} has too long a name; shorten it.")
    temporary = path.with_name(name)
    with _placing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(path.parent, glob.escape(path.name))
        _remove(temporary)
        if not _is_writable(path.parent):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
    try:
        yield temporary
        with _placing(path):
            # A folder renamed takes the place of an empty one and of nothing else.
            if anew and temporary.is_dir():
                _remove(path)
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def refuse_folder(path: str | Path) -> None:
    """Raise UserError where a folder with content would be replaced."""
    if os.path.isdir(path) and (not Path(path).name or any(Path(path).iterdir())):
        raise UserError(f"{path} is a folder that is not empty; delete it or name another place.")


def new_folder(path: str | Path) -> Path:
    """Return the place of a folder to write, with links resolved.

    Raises:
        UserError: something other than an empty folder has the name.
    """
    folder = Path(path).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{path} exists and is not an empty folder; name another place.")
    return folder


@contextlib.contextmanager
def _placing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in BAD_PLACE:
            raise
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name another place, or correct the "
            "permissions of this one."
        ) from None


def _is_writable(folder: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def remove_left_over(folder: Path, name: str = "*") -> None:
    """Remove the temporary siblings that killed processes left behind.

    Those of this machine go when their process is gone, those of others when they are a day old.

    Args:
        folder: where they lie.
        name: a glob of what they were to become.
    """
    for old in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process was as tidy
            if _is_left_over(old):
                _remove(old)


def _is_left_over(temporary: Path) -> bool:
    rest, _, number = temporary.name.removesuffix(".tmp").rpartition(".")
    if not number.isascii() or not number.isdigit():
        return False
    if rest.endswith(f".{socket.gethostname()}"):
        return not _is_running(int(number))
    return time.time() - temporary.lstat().st_mtime > DAY


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_object(path: str | Path, keys: Iterable[str], remedy: str | None = None) -> dict[str, Any]:
    """An object that holds the keys, and perhaps more.

    Args:
        path: of the file.
        keys: that it must have.
        remedy: what to do about a bad file, for the message; None: make it again.

    Raises:
        UserError: the file is missing, is not a JSON object, or lacks a key.
    """
    remedy = remedy or DELETE_AND_RERUN
    values = _parsed(Path(path), remedy)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}.")
    lacking = [key for key in keys if key not in values]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; {remedy}.")
    return values


def _parsed(path: Path, remedy: str) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; {remedy}.")
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path} is larger than {LARGEST_JSON} bytes; {remedy}.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}.") from None


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
