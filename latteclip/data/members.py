"""An image's bytes, wherever they lie: a file of its own, or inside a shard that holds thousands.

Inside a shard an image has the path `<shard>.tar#<first byte>+<bytes>`, read by one seek, or
`<file>.parquet#<row group>+<row>`. What was read of the last row group stays in memory, for
neighbours are read in turn.
"""

import os
import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from latteclip.core.paths import irregular

MAX_BYTES = 2**28  # of an image in a shard
MAX_GROUP = 2**30  # bytes of a column of a row group, as written and as read
_MEMBER = re.compile(
    r"(?P<shard>.+\.(?P<kind>tar|parquet))#(?P<first>\d{1,18})\+(?P<second>\d{1,18})",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)


class Member(NamedTuple):
    """An image in a shard."""

    shard: str
    kind: str  # tar or parquet
    first: int  # its first byte, or its row group
    second: int  # how many bytes, or its row there


def member(path: str | Path) -> Member | None:
    """What the path of an image says of the shard that holds it; None: it is a file of its own."""
    found = _MEMBER.fullmatch(str(path))
    if found is None:
        return None
    return Member(found["shard"], found["kind"].lower(), int(found["first"]), int(found["second"]))


def holder(path: str | Path) -> str:
    """The file on the disk that holds an image."""
    found = member(path)
    return found.shard if found else str(path)


def exists(path: str | Path) -> bool:
    """Whether the file that holds an image is there."""
    return os.path.isfile(holder(path))


def read(path: str | Path) -> bytes:
    """The bytes of an image.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no regular file, or the shard holds no such image.
    """
    found = member(path)
    if kind := irregular(holder(path)):
        raise ValueError(f"it is {kind} and no regular file")
    if found is None:
        return Path(path).read_bytes()
    return _of_tar(found) if found.kind == "tar" else _of_parquet(found)


def _of_tar(found: Member) -> bytes:
    if found.second > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    with Path(found.shard).open("rb") as file:
        file.seek(found.first)
        content = file.read(found.second)
    if len(content) < found.second:
        raise ValueError("its shard is cut off")
    return content


def _of_parquet(found: Member) -> bytes:
    state = os.stat(found.shard)
    images = _row_group(found.shard, found.first, state.st_size, state.st_mtime_ns)
    content = images[found.second]
    if content is None:
        raise ValueError("its row holds no bytes of an image")
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content


@lru_cache(maxsize=1)
def _row_group(shard: str, group: int, size: int, mtime_ns: int) -> "_Images":
    """The images of a row group, read again where the file changed."""
    return _Images(shard, group)


class _Images:
    """The images of a row group, read up to the last row that was asked for."""

    def __init__(self, shard: str, group: int) -> None:
        self._read: list[Any] = []  # arrays of one row
        self._rest = _images(shard, group)
        self._fault = "its row group has fewer rows"
        self._lock = threading.Lock()  # threads that decode share a row group

    def __getitem__(self, row: int) -> bytes | None:
        try:
            with self._lock:
                while len(self._read) <= row:
                    self._read.append(next(self._rest))
        except StopIteration:
            raise ValueError(self._fault) from None
        except (OSError, ValueError) as error:
            self._fault = str(error)  # also of the rows after this one
            raise
        return _bytes_of(self._read[row])


def _bytes_of(row: Any) -> bytes | None:
    """The bytes of the image in an array of one row: a column of bytes, or of bytes and paths."""
    is_struct = row.type.num_fields > 0
    content: bytes | None = (row.field("bytes") if is_struct else row)[0].as_py()
    return content


def _images(shard: str, group: int) -> Iterator[Any]:
    """The images of a row group, in arrays of one row."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(shard, pre_buffer=False) as file:
        if group >= file.num_row_groups:
            raise ValueError("its file has fewer row groups")
        check_group(file, group)
        yield from rows(file, group, image_column(file))


def rows(file: Any, group: int, column: str, at_once: int = 1) -> Iterator[Any]:
    """A column of a row group in arrays of so many rows.

    A value that is written once may be read millions of times, and a footer may lie about sizes.
    Only what was read tells how much memory a column takes.

    Raises:
        ValueError: the rows so far take more than MAX_GROUP bytes.
    """
    taken = 0
    # By this thread alone: a forked worker has no others.
    batches = file.iter_batches(at_once, row_groups=[group], columns=[column], use_threads=False)
    for batch in batches:
        taken += batch.get_total_buffer_size()
        if taken > MAX_GROUP:
            raise ValueError(_too_large(group, f"more than {MAX_GROUP / 2**30:.0f} GiB as read"))
        yield batch.column(0)


def image_column(file: Any) -> str:
    """The column of a Parquet file that holds bytes of images, as `datasets` writes them.

    Raises:
        ValueError: there is none, or more than one.
    """
    names = [file.schema.column(i).path for i in range(len(file.schema.names))]
    found = [name for name in names if name.endswith(".bytes") and name.count(".") == 1]
    if len(found) != 1:
        raise ValueError(f"of the columns {names}, {len(found)} are images with bytes, not one")
    return str(found[0])


def check_group(file: Any, group: int) -> None:
    """ValueError where a row group takes too much memory."""
    # Not what is said of its columns: where that is damaged, pyarrow ends the process.
    size = file.metadata.row_group(group).total_byte_size
    if size > MAX_GROUP:
        size_in_gib, most = size / 2**30, MAX_GROUP / 2**30
        raise ValueError(_too_large(group, f"{size_in_gib:.1f} GiB, more than {most:.0f} GiB"))


def _too_large(group: int, size: str) -> str:
    return f"row group {group} has {size}; write it with smaller row groups"
