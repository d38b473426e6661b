"""Files and folders: names that several rooms know, whole writes, JSON, and digests."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import filelock

from latteclip.core.errors import DELETE, DELETE_AND_RERUN, UserError
from latteclip.core.terminal import one_line

SPLITS = ("train", "val", "test")
CLASSES = "classes.txt"  # the names of the classes, one per line
# In place of that file: classes that a stage proposes, or the names of the folders.
DISCOVER = "discover"
FOLDERS = "folders"
# Names that systems and network storages put beside users' files: thumbnails, recycle bins.
LITTER = re.compile(
    r"\.|__MACOSX|(@eaDir|@Recycle|@Recently-Snapshot|#recycle|#snapshot|\$RECYCLE\.BIN"
    r"|System Volume Information|lost\+found|Thumbs\.db|ehthumbs\.db|desktop\.ini|Icon\r)$",
    re.IGNORECASE,
)
# The tables of captions, names, class scores and votes, below the results of a dataset.
IMAGES = "images"
GROUPS = "groups"
NAMES = "names"
SCORES = "scores"
# By what a captioner is asked for.
TABLES = {
    IMAGES: "captions/images.parquet",
    GROUPS: "captions/groups.parquet",
    NAMES: "names.parquet",
    SCORES: "class_scores.parquet",
}
LABELLERS = "labellers"  # folder of the tables that one labeller alone has
# Beside the results of a dataset whose classes a stage proposed.
ACTIONS = "classes.json"  # a person's actions
PROPOSAL = "discovery.json"
# What a value must do, by pydantic's type of the error.
IN_WORDS = {
    "bool_parsing": "be true or false",
    "dict_type": "be keys with values",
    "extra_forbidden": "not be there",
    "float_parsing": "be a number",
    "int_from_float": "be a whole number",
    "int_parsing": "be a whole number",
    "int_parsing_size": "be a smaller number",
    "int_type": "be a whole number",
    "list_type": "be a list",
    "model_type": "be keys with values",
    "string_type": "be a text",
    "too_short": "have an entry",
    "unexpected_keyword_argument": "not be there",
}
T = TypeVar("T")
LOCK_SECONDS = 30  # longest wait of a write for another one
# Seconds after which a temporary file of another machine is left over.
DAY = 24 * 60 * 60
# Errors of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
BLOCK = 64 * 2**10  # bytes of a model's file that are read at once
BLOCKS = 1024  # of which so many are read at most


@contextlib.contextmanager
def replacing(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, which takes the place of `path` on success.

    The body may create a file or a folder under that name. When the body raises, what it wrote is
    removed and `path` stays as it was. Files that killed processes left over are removed first.
    UserError: `path` is a folder with content, which needs `overwrite`.
    """
    path = Path(path)
    if path.is_dir() and not overwrite:
        new_folder(path)
    # Machines that share a file system may have processes of the same number.
    temporary = path.with_name(
        f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if _is_left_over(old):
                _remove(old)
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and overwrite:
            _remove(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let no other process write what a person did in this folder meanwhile, or raise UserError."""
    lock = path.with_name(".lock")
    try:
        with filelock.FileLock(lock, timeout=LOCK_SECONDS):
            yield
    except filelock.Timeout:
        raise UserError(
            f"{path} cannot be written: another process has had its lock {lock} for "
            f"{LOCK_SECONDS} s; end that process, and try again."
        ) from None


def new_folder(path: str | Path) -> Path:
    """Return the resolved path of a folder to write, or raise UserError if it is there and full."""
    folder = Path(path).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{path} exists and is not an empty folder; delete it or name another."
        )
    return folder


def _is_left_over(temporary: Path) -> bool:
    """Return whether its process is gone, or, of another machine, the file is a day old."""
    import psutil  # here: --help does without

    process = temporary.suffixes[-2]
    if temporary.name.endswith(f".{socket.gethostname()}{process}.tmp"):
        return not psutil.pid_exists(int(process[1:]))
    return time.time() - temporary.lstat().st_mtime > DAY


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_folder(source: str | Path, destination: Path) -> None:
    """Give the files of a stage's folder, but Snakemake's, other names in a new folder."""
    hidden = shutil.ignore_patterns(".*")
    shutil.copytree(source, destination, copy_function=link_or_copy, ignore=hidden)


def link_or_copy(source: str | Path, destination: str | Path) -> None:
    """Give a file another name, or copy it where the file system has no such links."""
    try:
        os.link(os.path.realpath(source), destination)
    except OSError:
        shutil.copy2(source, destination)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_object(
    path: str | Path, keys: Collection[str] = (), remedy: str = DELETE_AND_RERUN
) -> dict[str, Any]:
    """Read a JSON object with the keys, and perhaps more, or raise UserError with the remedy."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    # Also of bytes that are not UTF-8.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}.") from None
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        raise UserError(
            f"{path} is not an object with {', '.join(keys)}; {remedy}."
        )
    return values


def from_values(cls: type[T], values: Any, place: str) -> T:
    """Build a dataclass from a mapping. UserError: a key is missing or unknown, a type is wrong."""
    return from_json(cls, json.dumps(values), place)


def from_json(cls: type[T], text: str, place: str) -> T:
    """Build a dataclass, or a list of some, from JSON; see `from_values`.

    `place` is its file, or its section of the configuration.
    """
    from pydantic import TypeAdapter, ValidationError  # here: --help does without

    try:
        return TypeAdapter(cls).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, (place, *first["loc"])))
        raise UserError(
            f"{one_line(key)} must {wanted(first)}, not {one_line(repr(first['input']))}."
        ) from None


def wanted(error: Mapping[str, Any]) -> str:
    """Return what pydantic wants of a value, as the end of a sentence: be a whole number."""
    if error["type"] == "missing":
        return f"have the key {error['loc'][-1]}"
    message: str = error["msg"]
    return (
        IN_WORDS.get(error["type"])
        or message.partition(" should ")[2]
        or f"be valid ({message})"
    )


def read_record(cls: type[T], path: str | Path) -> T:
    """Read a dataclass from the JSON file of `write_record`, or raise UserError."""
    return from_values(cls, read_object(path), str(path))


def write_record(path: str | Path, record: object) -> None:
    """Write a dataclass as JSON, whole or not at all."""
    write_json(path, values_of(record))


def values_of(record: object) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON has them."""
    from pydantic_core import to_jsonable_python

    return dict(to_jsonable_python(record))


def existing(path: str | Path) -> Path:
    """Return a path, or its nearest parent that exists."""
    path = Path(path).resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def sqlite_file(path: Path) -> sqlite3.Connection:
    """Open an SQLite file, which is created where it is absent.

    SQLite takes a file system without locks for a locked file, unless the address says otherwise.
    """
    from filelock import lock_descriptor  # here: --help does without

    lacks_locks = False
    try:
        with path.open("ab") as file:
            lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:  # SQLite reports the others
        lacks_locks = error.errno in NO_LOCKS
    uri = path.absolute().as_uri() + ("?nolock=1" if lacks_locks else "")
    with sqlite_errors(path):
        connection = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)
    connection.row_factory = sqlite3.Row
    return connection


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as a UserError, or as an OSError where the disk is full."""
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(
                errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)
            ) from None
        raise UserError(
            f"The cache {path} cannot be used ({error}); see that nothing else uses it and that "
            "its disk can be written, or delete it: what it had is computed or asked for again."
        ) from None


def labeller_table(name: str) -> str:
    """Return the table of a labeller whose votes a job of its own writes."""
    return f"{LABELLERS}/{name}.parquet"


def folders_in(place: str | Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without those of systems."""
    names = sorted(path.name for path in Path(place).iterdir() if path.is_dir())
    return [name for name in names if not LITTER.match(name)]


def lines_of(path: str | Path) -> list[str]:
    """Return the lines of a text file that are not empty, stripped.

    OSError: it cannot be read. UserError: it is not UTF-8, with or without a byte order mark.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid UTF-8 text ({error}); write it again."
        ) from None
    return [line for line in map(str.strip, text.splitlines()) if line]


def edited_classes(folder: str | Path) -> list[str] | None:
    """Return the names in the results' classes.txt if a person wrote or edited it, else None.

    UserError: it is not UTF-8.
    """
    path, proposal = Path(folder, CLASSES), Path(folder, PROPOSAL)
    if not path.is_file():
        return None
    names = lines_of(path)
    proposed = []
    if proposal.is_file():
        proposed = read_object(proposal, remedy=DELETE)["classes"]
    return None if names == proposed else names


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of parts, each preceded by its length so that they cannot run together."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Return the `digest` of parts that come one by one."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def fingerprint(model: str | Path) -> str:
    """Return a digest of a model's file, or of the files of its folder, wherever it is.

    Of large files, their size and blocks spread evenly over them count. No training leaves these
    unchanged. Hidden files do not count.
    """
    root = Path(model)
    parts: list[str] = []
    # Unlike Path.rglob, it follows links to folders.
    found = glob.iglob("**", root_dir=root, recursive=True)
    for name in sorted(found) if root.is_dir() else [""]:
        path = root / name
        if path.is_file():
            size = str(path.stat().st_size)
            parts += [name, size, digest_of(_blocks(path))]
    return f"sha256:{digest(*parts)}"


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the whole file in blocks, or so many blocks of a larger one."""
    step = max(BLOCK, path.stat().st_size // BLOCKS)
    with path.open("rb") as file:
        for start in range(0, path.stat().st_size, step):
            file.seek(start)
            yield file.read(BLOCK)
