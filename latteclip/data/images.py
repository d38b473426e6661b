"""Read images: their bytes, from a file or a shard, an upright RGB picture and its fingerprint.

In a shard an image has the path `<shard>.tar#<first byte>+<bytes>`, read by one seek, or
`<file>.parquet#<row group>+<row>`. The last row group is cached, since neighbouring rows are
usually read in sequence. Imports no torch: worker processes start quickly.

A fingerprint finds near-duplicates: it has perceptual hashes and a thumbnail. A hash marks which of
a picture's lowest frequencies are above their median, by a discrete cosine transform (as pHash
does: Zauner 2010). Crops of the picture have hashes too, so that a copy without its margin is
similar to one of them.
"""

import io
import math
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pillow_heif
import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError

from latteclip.core.errors import UserError

# HEIC, which phones write. A worker has one core, and never decodes the thumbnail instead.
pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
# Pillow knows many more formats, and runs programs for some of them.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000")
MAX_PIXELS = 2**27  # of one image: twice 4 bytes each are 1 GiB
MAX_RATIO = 1000  # of the longer side to the shorter one: a model's input makes the shorter 224
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")
MAX_BYTES = 2**28  # of an image
MAX_GROUP = 2**30  # bytes of a column of a row group, as written and as read
SIDE, FREQUENCIES, THUMBNAIL = 64, 16, 16  # pixels S, waves K and pixels of a side
CROPS = (0.95, 0.9)  # of each side; a view is the whole, or such a crop from five places
PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # down, across
VIEWS = [(1.0, 0.5, 0.5)] + [(share, *place) for share in CROPS for place in PLACES]  # V
BITS = FREQUENCIES**2
HASHES = len(VIEWS) * BITS // 8  # bytes of the V hashes of a picture
FINGERPRINTS = pa.schema(  # hashes of the views, the whole first, and a grey thumbnail
    {"image_id": pa.string(), "hashes": pa.binary(HASHES), "thumbnail": pa.binary(THUMBNAIL**2)}
)
Floats = npt.NDArray[np.float32]
_LOCK = threading.Lock()
_MEMBER = re.compile(
    r"(.+\.(tar|parquet))#(\d{1,18})\+(\d{1,18})", re.ASCII | re.DOTALL | re.IGNORECASE
)


class Member(NamedTuple):
    """An image in a shard."""

    shard: str
    kind: str  # tar or parquet
    first: int  # its first byte, or its row group
    second: int  # how many bytes, or its row there


def shard_member(path: str | Path) -> Member | None:
    """Return where a path points in a shard, None for the path of a separate file."""
    found = _MEMBER.fullmatch(str(path))
    if found is None:
        return None
    shard, kind, first, second = found.groups()
    return Member(shard, kind.lower(), int(first), int(second))


def container_of(path: str | Path) -> str:
    """Return the file on the disk that holds an image."""
    found = shard_member(path)
    return found.shard if found else str(path)


def image_exists(path: str | Path) -> bool:
    """Return whether the file that holds an image exists."""
    return os.path.isfile(container_of(path))


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of an image.

    Raises OSError for a file that is missing or cannot be read, and ValueError for a file that is
    not regular, a shard without such an image, or more than MAX_BYTES.
    """
    found, state = shard_member(path), os.stat(container_of(path))
    too_large = ValueError(f"it has more than {MAX_BYTES} bytes")
    if not stat.S_ISREG(state.st_mode):  # reading a pipe may never end
        raise ValueError("it is no regular file")
    if found is None:
        if state.st_size > MAX_BYTES:
            raise too_large
        return Path(path).read_bytes()
    content = _of_tar(found) if found.kind == "tar" else _of_parquet(found)
    if len(content) > MAX_BYTES:
        raise too_large
    return content


def _of_tar(found: Member) -> bytes:
    size = min(found.second, MAX_BYTES + 1)
    with Path(found.shard).open("rb") as file:
        file.seek(found.first)
        content = file.read(size)
    if len(content) < size:
        raise ValueError("its shard is cut off")
    return content


def _of_parquet(found: Member) -> bytes:
    state = os.stat(found.shard)  # another size or time reads the file again
    with _LOCK:  # threads that decode share a row group
        images, problem = _row_group(found.shard, found.first, state.st_size, state.st_mtime_ns)
    if found.second >= len(images):
        raise ValueError(problem)
    values = images[found.second]
    is_struct = values.type.num_fields > 0  # of bytes and paths
    content: bytes | None = (values.field("bytes") if is_struct else values)[0].as_py()
    if content is None:
        raise ValueError("its row holds no bytes of an image")
    return content


@lru_cache(maxsize=1)
def _row_group(shard: str, group: int, _size: int, _mtime_ns: int) -> tuple[list[Any], str]:
    """Return the images of a row group, in arrays of one row, and why there are no more of them."""
    import pyarrow.parquet as pq

    images: list[Any] = []
    try:
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            if group >= file.num_row_groups:
                return [], "its file has fewer row groups"
            images.extend(rows(file, group, image_column(file)))
    except Exception as error:  # of pyarrow, on damaged files: the images before it remain
        return images, str(error)
    return images, "its row group has fewer rows"


def rows(file: Any, group: int, column: str, at_once: int = 1) -> Iterator[Any]:
    """Yield a column of a row group in arrays of `at_once` rows.

    Raises ValueError where it takes more than MAX_GROUP bytes. A footer may lie about sizes, and a
    value that is written once may be read millions of times. So the memory is counted.
    """
    too_large = ValueError(f"row group {group} is too large; write the file with smaller ones")
    # Its columns are not asked: where their metadata is damaged, pyarrow ends the process.
    if file.metadata.row_group(group).total_byte_size > MAX_GROUP:
        raise too_large
    taken = 0
    # In this thread: a forked worker has no others.
    batches = file.iter_batches(at_once, row_groups=[group], columns=[column], use_threads=False)
    for batch in batches:
        taken += batch.get_total_buffer_size()
        if taken > MAX_GROUP:
            raise too_large
        yield batch.column(0)


def image_column(file: Any) -> str:
    """Return the column of a Parquet file that holds images, as `datasets` writes them."""
    names = [file.schema.column(i).path for i in range(len(file.schema.names))]
    found = [name for name in names if name.endswith(".bytes") and name.count(".") == 1]
    if len(found) != 1:
        raise ValueError(f"of the columns {names}, {len(found)} are images with bytes, not one")
    return str(found[0])


def open_rgb(
    path: str | Path,
    *,
    content: BinaryIO | None = None,
    max_side: int | None = None,
    min_side: int | None = None,
) -> Image.Image:
    """Decode an image of a file or shard, or its content: upright by its EXIF orientation, RGB.

    A picture with a side of more than `max_side` pixels is scaled down (Lanczos). With `min_side`
    alone, a JPEG may be decoded at a half, a quarter or an eighth of its size, where its shorter
    side keeps so many pixels. Beside `content`, the path is a name for messages.

    Raises UserError where the file is missing or cannot be decoded.
    """
    try:
        return _decode(content or io.BytesIO(read_bytes(path)), max_side, min_side)
    except Exception as error:  # decoders fail in many ways on broken files
        raise UserError(
            f"Image {path} cannot be decoded ({_reason(error)}); replace or remove it."
        ) from None


def read_and_decode(path: str | Path) -> tuple[bytes, Image.Image] | str:
    """Return the bytes and the picture of an image, or the reason why it cannot be decoded."""
    try:
        content = read_bytes(path)
        return content, _decode(io.BytesIO(content))
    except Exception as error:  # as above
        return _reason(error)


def _decode(
    file: BinaryIO, max_side: int | None = None, min_side: int | None = None
) -> Image.Image:
    """Decode as `open_rgb` does, and raise whatever a decoder raises."""
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:  # before any memory is taken
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ValueError(f"{width} x {height} pixels are longer than {MAX_RATIO} to 1")
        scale = 1.0
        if max_side is not None:
            scale = 2 * max_side / max(width, height)  # so that Lanczos has something to average
        elif min_side is not None:
            scale = min_side / min(width, height)
        if scale < 1:  # a JPEG is decoded at a half, a quarter or an eighth of its size
            image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if image.mode in SIXTEEN_BIT:  # convert("RGB") would clip, not scale
            upright = image.convert("I").point(lambda value: value / 256.0).convert("L")
        picture = upright.convert("RGB")
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def _reason(error: Exception) -> str:
    """Return one line on why a decoder gave up."""
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    if isinstance(error, UnidentifiedImageError):  # its message has an address in memory
        return "it is no image of a known format"
    return next(iter(str(error).splitlines()), "") or "it is damaged"


@dataclass(frozen=True)
class Fingerprint:
    """The size of a picture, its columns of FINGERPRINTS, and a checksum of its bytes."""

    width: int
    height: int
    hashes: bytes
    thumbnail: bytes
    checksum: bytes


def fingerprint(picture: Image.Image, checksum: bytes = b"") -> Fingerprint:
    """Return the fingerprint of an upright RGB picture, with the checksum of its bytes."""
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(small, np.float32)
    part = SIDE // THUMBNAIL
    thumbnail = grey.reshape(THUMBNAIL, part, THUMBNAIL, part).mean((1, 3)).round()
    small = thumbnail.astype(np.uint8).tobytes()
    return Fingerprint(*picture.size, hashes(grey).tobytes(), small, checksum)


def hashes(grey: Floats) -> npt.NDArray[np.uint8]:
    """Return the hashes [V, BITS / 8] of a grey picture [S, S]."""
    # Without @: threads of BLAS take ten times the CPU for matrices this small.
    across = np.einsum("ks,st->kt", _WAVES, grey - grey.mean())  # [stretches K, S]
    bands = np.einsum("kt,lt->kl", across, _WAVES)  # [stretches K, stretches K]
    blocks = bands.reshape(len(_STRETCHES), FREQUENCIES, len(_STRETCHES), FREQUENCIES)
    waves = blocks[_DOWN, :, _ACROSS].reshape(len(VIEWS), -1)  # [V, K K]
    return np.packbits(waves > np.median(waves, axis=1, keepdims=True), axis=1)


def inside(start: float, length: float, side: int) -> Floats:
    """Return the share of each pixel of a side [side] in a stretch, given in shares of the side."""
    pixels = np.arange(side, dtype=np.float32)
    first, last = start * side, (start + length) * side
    part = np.minimum(pixels + 1, last) - np.maximum(pixels, first)
    return np.asarray(part.clip(0, 1), np.float32)


def _waves(share: float, place: float) -> Floats:
    """Return the lowest cosines [K, S] over a crop of a side, from place 0, at its start, to 1."""
    start = (1 - share) * place
    along = ((np.arange(SIDE) + 0.5) / SIDE - start) / share  # of the crop, where a pixel lies
    cosines = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * along.clip(0, 1))
    return np.asarray(cosines * inside(start, share, SIDE), np.float32)


_STRETCHES = sorted({(share, place) for share, *places in VIEWS for place in places})
_WAVES = np.concatenate([_waves(*one) for one in _STRETCHES])  # [stretches K, S]
_DOWN, _ACROSS = ([_STRETCHES.index((view[0], view[axis])) for view in VIEWS] for axis in (1, 2))
