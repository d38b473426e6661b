"""Read the images and labels of shards, which are files of thousands of images each.

A tar of WebDataset has samples: `key.jpg` beside `key.cls`, `key.txt` or `key.json`. A Parquet file
of Hugging Face `datasets` has the bytes of an image beside a label. Headers and labels are read
here, images later by their place in the shard (`images.shard_member`).
"""

import contextlib
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from latteclip.core.errors import UserError
from latteclip.data import images
from latteclip.data.folder_files import IMAGE_SUFFIXES, inside

# Suffixes of shards, by kind of split.
SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
MAX_LABEL = 2**20  # bytes of a part that holds a label
# A tar's headers: bytes of each, which tarfile reads whole, and number of global ones, at most.
MAX_HEADER = 2**18
MAX_GLOBALS = 100
MAX_ROWS = 10**7  # rows of a Parquet file, at most: a footer may claim any number
LABELS_AT_ONCE = 2**16
FEATURES = b"huggingface"  # the key of metadata in which `datasets` describes columns
# Name and place of an image, as `images.shard_member` reads it after #, and a label of any type.
Sample = tuple[str, str, Any]


class HeaderOrEnd(tarfile.TarInfo):
    """A header or the end mark of a tar. tarfile takes anything else for the end as well."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "HeaderOrEnd":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError(f"no end mark, or a damaged header: {error}") from None
        # tarfile reads long headers whole, and the list of the parts of a sparse file.
        if not header.isreg() and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return header

    # Tarfile calls it, by this name alone.
    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file")


def tar_entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar that was opened with HeaderOrEnd.

    An entry that leads back is a ReadError: tarfile would read without end (CVE-2025-8194).
    """
    offset = 0
    while (entry := tar.next()) is not None:
        if entry.size < 0 or tar.offset <= offset:
            raise tarfile.ReadError("an entry leads back to an earlier one")
        if len(tar.pax_headers) > MAX_GLOBALS:
            raise tarfile.ReadError(f"more than {MAX_GLOBALS} global headers")
        offset = tar.offset
        yield entry
        tar.members.clear()  # type: ignore[attr-defined]  # a million take a gigabyte


def tar_samples(shard: Path, label: str | None) -> Iterator[Sample]:
    """Yield the images of a tar in order. `label` is the suffix of parts with labels.

    After a colon it names the field of JSON that is one.
    """
    suffix_of_labels, _, json_field = (label or "cls").partition(":")
    with (
        shard.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=HeaderOrEnd) as tar,
    ):
        for key, group in itertools.groupby(_tar_parts(tar, shard), itemgetter(0)):
            parts = {suffix: entry for _, suffix, entry in group}
            labels = parts.get(suffix_of_labels.lower())
            text = _tar_label(file, labels, json_field, shard) if labels else None
            for suffix, image in parts.items():
                if f".{suffix}" in IMAGE_SUFFIXES:
                    place = f"{image.offset_data}+{image.size}"
                    yield f"{key}.{suffix}", place, text


def _tar_parts(
    tar: tarfile.TarFile, shard: Path
) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the parts of samples: key, suffix in lower case, and entry."""
    for entry in tar_entries(tar):
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            raise UserError(
                f"{shard} contains {entry.name[:80]!r}, which is not a plain file and is refused."
            )
        folder, slash, name = inside(entry.name.removeprefix("./"), shard).rpartition("/")
        key, dot, suffix = name.partition(".")
        if key and dot:  # neither hidden nor of no sample
            yield folder + slash + key, suffix.lower(), entry


def _tar_label(file: BinaryIO, entry: tarfile.TarInfo, json_field: str, shard: Path) -> str:
    """Read a part that holds a number or a class name, in a field of JSON if one is named."""
    file.seek(entry.offset_data)
    try:
        if entry.size > MAX_LABEL:
            raise ValueError
        text = file.read(entry.size).decode().strip()
        label = json.loads(text)[json_field] if json_field else text
        str(label).encode()  # JSON may name half of a character
        return str(label)
    except (ValueError, LookupError, TypeError, RecursionError):
        what = f"JSON with the field {json_field!r}" if json_field else "text in UTF-8"
        raise UserError(
            f"{shard}: {entry.name} is not {what} of at most {MAX_LABEL} bytes; set "
            "split.label to the labels."
        ) from None


def parquet_samples(shard: Path, label: str | None) -> Iterator[Sample]:
    """Yield the images of a Parquet file in order. `label` is the column of labels, if any."""
    number = itertools.count()
    column = label or "label"
    with pq.ParquetFile(shard) as file:
        images.image_column(file)
        schema = file.schema_arrow
        has_labels = column in schema.names
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it has more than {MAX_ROWS} rows")
        if label and not has_labels:
            raise ValueError(f"it has no column {column!r} but {schema.names}")
        # Numbers take little memory, however many they are. Other values are read one by one.
        are_numbers = has_labels and pa.types.is_integer(schema.field(column).type)
        at_once = LABELS_AT_ONCE if are_numbers else 1
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            labels: Iterable[Any] = itertools.repeat(None, rows)
            if has_labels:
                arrays = images.rows(file, group, column, at_once)
                labels = itertools.chain.from_iterable(map(pa.Array.to_pylist, arrays))
            for row, value in enumerate(labels):
                yield str(next(number)), f"{group}+{row}", value


def described_classes(shard: Path, label: str | None) -> tuple[str, ...]:
    """Return the class names in label order that a Parquet file describes, if any."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        features = json.loads(pq.read_schema(shard).metadata[FEATURES])["info"]["features"]
        names = features[label or "label"]["names"]
        return TypeAdapter(tuple[str, ...]).validate_python(names)
    return ()


SAMPLES = {"webdataset": tar_samples, "parquet": parquet_samples}
