"""Find, read and decode images, in worker processes if there are many.

In a shard an image has the path `<shard>.tar#<first byte>+<bytes>`, read by one seek, or
`<file>.parquet#<row group>+<row>`. The last row group is cached, since neighbouring rows are
usually read in sequence. Imports no torch: worker processes start quickly.
"""

import contextlib
import hashlib
import io
import itertools
import math
import multiprocessing
import os
import re
import signal
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

from latteclip.core.errors import UserError
from latteclip.core.files import LITTER

# HEIC, which phones write. A worker has one core, and never decodes the thumbnail instead.
pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".hif",
        ".jpeg",
        ".jpg",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
# Levels on which links to folders are followed, as class folders may be.
LINKED = 2
WRITTEN = ("results", "resources")  # by the workflow, into the working folder
# Pillow knows many more formats, and runs programs for some of them.
FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "PPM",
    "TIFF",
    "WEBP",
    "AVIF",
    "HEIF",
    "JPEG2000",
)
MAX_PIXELS = 2**27  # pixels of one image, at most: twice 4 bytes each are 1 GiB
# Ratio of the longer side to the shorter one, at most: a model's input makes the shorter 224.
MAX_RATIO = 1000
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")
MAX_BYTES = 2**28  # bytes of an image, at most
MAX_GROUP = 2**30  # bytes of a column of a row group, as written and as read
CHUNK = 8  # images that a worker process takes at a time
AHEAD = 8  # chunks that are ready or wait, besides those in work
T = TypeVar("T")
R = TypeVar("R")
_LOCK = threading.Lock()
_MEMBER = re.compile(
    r"(.+\.(tar|parquet))#(\d{1,18})\+(\d{1,18})",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case, such as .jpg."""
    return os.path.splitext(name)[1].lower()


def walk(
    folder: str | Path, linked: int = LINKED, prefix: str = ""
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files in a folder and below it with their paths in it, sorted by these.

    Litter and results are left out. Links to folders are followed on `linked` levels.
    """
    left_out = WRITTEN if os.path.samefile(folder, os.curdir) else ()
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if LITTER.match(entry.name) or entry.name in left_out:
            continue
        name = prefix + entry.name
        if not entry.is_dir():
            yield name, entry
        elif linked > 0 or not entry.is_symlink():
            yield from walk(entry.path, linked - 1, f"{name}/")


def image_files(folder: str | Path) -> list[str]:
    """Return the image files in a folder and below it by their paths in it."""
    return [name for name, _ in walk(folder) if suffix_of(name) in IMAGE_SUFFIXES]


def files_of(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Return image files, and those in folders and below them, in order."""
    given = [paths] if isinstance(paths, str | Path) else paths
    files: list[str] = []
    for path in map(str, given):
        if os.path.isdir(path):
            files += [str(Path(path, name)) for name in image_files(path)]
        else:
            files.append(path)
    return files


def stamp(path: str | os.DirEntry[str]) -> str:
    """Return size and time of a file, which no change of its content leaves as they were."""
    state = os.stat(path)
    return f"{state.st_size} {state.st_mtime_ns}"


class Member(NamedTuple):
    """An image in a shard."""

    shard: str
    kind: str  # tar or parquet
    first: int  # its first byte, or its row group
    second: int  # how many bytes, or its row there


def shard_member(path: str | Path) -> Member | None:
    """Return where a path points in a shard, None for the path of a separate file."""
    match = _MEMBER.fullmatch(str(path))
    if match is None:
        return None
    shard, kind, first, second = match.groups()
    return Member(shard, kind.lower(), int(first), int(second))


def container_of(path: str | Path) -> str:
    """Return the file on the disk that holds an image."""
    member = shard_member(path)
    return member.shard if member else str(path)


def image_exists(path: str | Path) -> bool:
    """Return whether the file that holds an image exists."""
    return os.path.isfile(container_of(path))


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of an image.

    Raises OSError for a file that is missing or cannot be read, and ValueError for a file that is
    not regular, a shard without such an image, or more than MAX_BYTES.
    """
    member = shard_member(path)
    state = os.stat(container_of(path))
    if not stat.S_ISREG(state.st_mode):  # reading a pipe may never end
        raise ValueError("it is no regular file")
    if member and member.kind == "parquet":
        content = _of_parquet(member, state)
    else:
        content = _of_file(member or Member(str(path), "", 0, state.st_size))
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content


def checksum(content: bytes) -> bytes:
    """Return the checksum of an image's bytes, by which answers know it."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _of_file(member: Member) -> bytes:
    size = min(member.second, MAX_BYTES + 1)
    with Path(member.shard).open("rb") as file:
        file.seek(member.first)
        content = file.read(size)
    if len(content) < size:
        raise ValueError("its shard is cut off")
    return content


def _of_parquet(member: Member, state: os.stat_result) -> bytes:
    # Another one reads the file again.
    version = (state.st_size, state.st_mtime_ns)
    with _LOCK:  # threads that decode share a row group
        images, problem = _row_group(member.shard, member.first, version)
    if member.second >= len(images):
        raise ValueError(problem)
    values = images[member.second].field("bytes")
    content: bytes | None = values[0].as_py()
    if content is None:
        raise ValueError("its row holds no bytes of an image")
    return content


@lru_cache(maxsize=1)
def _row_group(
    shard: str, group: int, _version: tuple[int, int]
) -> tuple[list[Any], str]:
    """Return the images of a row group, in arrays of one row, and why there are no more of them."""
    import pyarrow.parquet as pq

    images: list[Any] = []
    try:
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            if group >= file.num_row_groups:
                return [], "its file has fewer row groups"
            images.extend(rows(file, group, image_column(file)))
    # Raised by pyarrow on damaged files: the images before it remain.
    except Exception as error:
        return images, str(error)
    return images, "its row group has fewer rows"


def rows(file: Any, group: int, column: str) -> Iterator[Any]:
    """Yield a column of a row group in arrays of one row.

    Raises ValueError where it takes more than MAX_GROUP bytes. A footer may lie about sizes, and a
    value that is written once may be read millions of times. So the memory is counted.
    """
    too_large = ValueError(
        f"row group {group} is too large; write the file with smaller ones"
    )
    # Its columns are not asked: where their metadata is damaged, pyarrow ends the process.
    if file.metadata.row_group(group).total_byte_size > MAX_GROUP:
        raise too_large
    taken = 0
    # In this thread: a forked worker has no others.
    batches = file.iter_batches(
        1, row_groups=[group], columns=[column], use_threads=False
    )
    for batch in batches:
        taken += batch.get_total_buffer_size()
        if taken > MAX_GROUP:
            raise too_large
        yield batch.column(0)


def image_column(file: Any) -> str:
    """Return the column of a Parquet file that holds images, as `datasets` writes them."""
    names = [file.schema.column(i).path for i in range(len(file.schema.names))]
    columns = [
        name for name in names if name.endswith(".bytes") and name.count(".") == 1
    ]
    if len(columns) != 1:
        raise ValueError(
            f"of the columns {names}, {len(columns)} are images with bytes, not one"
        )
    return str(columns[0])


def read_image(path: str | Path) -> bytes:
    """Return the bytes of an image, or raise UserError."""
    try:
        return read_bytes(path)
    except Exception as error:  # pyarrow raises many
        raise _unusable(path, error) from None


def open_rgb(
    path: str | Path,
    *,
    wanted: bytes | None = None,
    max_side: int | None = None,
    min_side: int | None = None,
) -> Image.Image:
    """Decode an image, of the wanted checksum if there is one.

    Raises UserError where the file is missing, is another one, or cannot be decoded.
    """
    try:
        content = read_bytes(path)
        if wanted not in (None, checksum(content)):
            raise ValueError("it has changed: run the workflow again")
        return decode(content, max_side, min_side)
    except Exception as error:  # decoders fail in many ways on broken files
        raise _unusable(path, error) from None


def _unusable(path: str | Path, error: Exception) -> UserError:
    return UserError(
        f"Image {path} cannot be decoded ({reason(error)}); replace or remove it."
    )


def decode(
    content: bytes, max_side: int | None = None, min_side: int | None = None
) -> Image.Image:
    """Decode the bytes of a file to a picture, upright by its EXIF orientation, in RGB.

    A picture with a side of more than `max_side` pixels is scaled down (Lanczos). With `min_side`
    alone, a JPEG may be decoded at a half, a quarter or an eighth of its size, where its shorter
    side keeps so many pixels. Raises whatever a decoder raises.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return to_rgb(image, max_side, min_side)


def to_rgb(
    image: Image.Image, max_side: int | None = None, min_side: int | None = None
) -> Image.Image:
    """Return what `decode` returns of an open image, which it turns."""
    width, height = image.size
    if width * height > MAX_PIXELS:  # before any memory is taken
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"{width} x {height} pixels are longer than {MAX_RATIO} to 1"
        )
    if image.mode == "F":  # nothing says which number is white
        raise ValueError(
            "its pixels are floating-point numbers; write it with 8 or 16 bits"
        )
    scale = 1.0
    if max_side is not None:
        # So that Lanczos has something to average.
        scale = 2 * max_side / max(width, height)
    elif min_side is not None:
        scale = min_side / min(width, height)
    # A JPEG is decoded at a half, a quarter or an eighth of its size.
    if scale < 1:
        image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
    ImageOps.exif_transpose(image, in_place=True)
    upright: Image.Image = image
    if image.mode in SIXTEEN_BIT:  # convert("RGB") would clip, not scale
        upright = (
            image.convert("I").point(lambda value: value / 256.0).convert("L")
        )
    picture = upright.convert("RGB")
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def reason(error: Exception) -> str:
    """Return one line on why a decoder gave up."""
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    # Its message has an address in memory.
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    return next(iter(str(error).splitlines()), "") or "it is damaged"


class Workers(contextlib.AbstractContextManager["Workers[T, R]"], Generic[T, R]):
    """Processes that work on tasks in order, with a bounded number of tasks in flight.

    They start quickly and stay small if the module of `work` imports nothing heavy, such as torch.
    """

    def __init__(
        self, work: Callable[[T], R], n: int, name: Callable[[T], str] = str
    ) -> None:
        """Create a pool of n processes, which start with the first tasks.

        `work` is a function, or an object of a class, at the top level of its module. `name`
        returns the name of a task's image for messages.
        """
        # Not forked from this process, which may hold the threads and the GPU of an engine.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, work.__module__])
        self._work = work
        self._room = n + AHEAD
        self._name = name
        self._pool = ProcessPoolExecutor(n, context, _start_worker)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def in_order(self, tasks: Iterable[T]) -> Iterator[R]:
        """Yield the result of each task in order, or raise UserError where a process died."""
        source = iter(tasks)
        chunks = iter(lambda: list(itertools.islice(source, CHUNK)), [])
        # With the first task of each chunk.
        waiting = deque[tuple[T, Future[list[R]]]]()
        near: Any = None
        try:
            while True:
                for chunk in itertools.islice(chunks, self._room - len(waiting)):
                    near = chunk[0]
                    waiting.append(
                        (near, self._pool.submit(_work_on, self._work, chunk))
                    )
                if not waiting:
                    return
                near, results = waiting.popleft()
                yield from results.result()
        except BrokenProcessPool:
            # Nobody reads what the others give.
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            raise UserError(
                f"A process that decodes images died near {self._name(near)} (out of memory, or a "
                "file that crashes the decoder); set compute.threads lower or remove the file."
            ) from None
        finally:
            for _, results in waiting:
                results.cancel()


def leave_signals_to_parent(*_: object) -> None:
    """Ignore signals, which a cluster sends to every process of a job: the parent decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _start_worker() -> None:
    leave_signals_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_on(work: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
    return [work(task) for task in tasks]
