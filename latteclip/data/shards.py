"""Read the samples of shards, files that hold thousands of images each: tars or Parquet files.

A tar has samples as WebDataset lays them out, `key.jpg` beside `key.cls` or `key.json`. A Parquet
file has rows as Hugging Face `datasets` writes them, an image's bytes beside a label. Only headers
and labels are read. Nothing is unpacked.
"""

import contextlib
import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latteclip.core.errors import UserError, first_line
from latteclip.data import images
from latteclip.data.folder_files import IMAGE_SUFFIXES, SPLITS, inside, is_litter

SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}  # of shards, by kind of split
TAR_LABEL, PARQUET_LABEL = "cls", "label"  # where labels are, unless the dataset names another part
MAX_LABEL = 2**20  # bytes of a part that holds a label
MAX_ROWS = 10**7  # of a Parquet file: a footer may claim any number
UNLABELLED = -1  # the label by which `datasets` marks an unlabelled image
LABELS_AT_ONCE = 2**16
FEATURES = b"huggingface"  # the key of metadata in which `datasets` describes columns
# The word of a shard's path that names its split.
_WORD = re.compile(
    r"(?<![a-z0-9])(train|training|val|valid|validation|dev|test)(?=[^a-z]|$)", re.IGNORECASE
)
_SPLIT_OF = {"train": "train", "training": "train", "test": "test"}  # all others: val
Label = int | str | None  # a number, a class name, or unknown


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard."""

    name: str  # in the shard
    place: str  # in the shard, see `images.shard_member`
    label: Label


def find_shards(root: Path, kind: str, lists: Mapping[str, str]) -> list[tuple[Path, str]]:
    """Return the shards below a folder, each with its split, or "" where nothing names splits.

    Args:
        root: the folder of the shards.
        kind: of SUFFIXES.
        lists: a glob of the shards of each split; empty: all shards, by the words in their paths.

    Raises:
        UserError: there are no shards, or only some of their names tell a split.
    """
    return _listed(root, lists) if lists else _by_words(root, SUFFIXES[kind])


def _listed(root: Path, lists: Mapping[str, str]) -> list[tuple[Path, str]]:
    found = {}
    for split, pattern in lists.items():
        try:
            shards = sorted(filter(Path.is_file, root.glob(pattern)))
        except (ValueError, NotImplementedError) as error:
            raise UserError(
                f"split.lists.{split} is {pattern!r}, which is no glob relative to {root} "
                f"({error}); correct it."
            ) from None
        if not shards:
            raise UserError(f"No shard in {root} fits {pattern!r}, split.lists.{split}.")
        found[split] = shards
    return [(shard, split) for split in SPLITS for shard in found.get(split, [])]


def _by_words(root: Path, suffix: str) -> list[tuple[Path, str]]:
    found = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() == suffix
        and path.is_file()
        and not any(map(is_litter, path.relative_to(root).parts))
    )
    if not found:
        raise UserError(f"{root} holds no shards (*{suffix}); split.images names their folder.")
    splits = [_split_of(path.relative_to(root).as_posix()) for path in found]
    if any(splits) and not {"train", "test"} <= set(splits) <= set(SPLITS):
        examples = {split: path.name for path, split in zip(found, splits, strict=True)}
        named = ", ".join(f"{name}: {split or 'nothing'}" for split, name in examples.items())
        raise UserError(
            f"The names of the shards in {root} must say of all whether they are train, val or "
            f"test, and name both train and test, or say nothing ({named}); split.lists of the "
            "dataset can name the shards of each split."
        )
    return list(zip(found, splits, strict=True))


def _split_of(name: str) -> str:
    words: list[str] = _WORD.findall(name)
    return _SPLIT_OF.get(words[-1].lower(), "val") if words else ""


# --- tars ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """One file in a tar: a part of the sample with its key."""

    key: str
    suffix: str
    place: str
    content: bytes | None  # of a part that holds a label


def tar_samples(
    shard: Path, image: str | None, label: str | None, skipped: Counter[str]
) -> Iterator[Sample]:
    """Yield the images of a tar in order.

    Args:
        shard: the tar, which must not be compressed.
        image: the suffix of images, for samples with more than one; None: any known one.
        label: the suffix of labels, with ":field" for a field of JSON; None: TAR_LABEL.
        skipped: counts samples without an image, by suffix.

    Raises:
        UserError: the shard is damaged, cut off, compressed or unsafe, or a label is not one.
    """
    suffix, _, field = (label or TAR_LABEL).partition(":")
    suffix = suffix.lower()  # as those of the files are read
    wanted = {f".{image.lower()}"} if image else IMAGE_SUFFIXES
    parts_in_order = _tar_parts(shard, suffix)
    for key, group in itertools.groupby(parts_in_order, lambda part: part.key):
        parts = list(group)
        found = [part for part in parts if f".{part.suffix}" in wanted]
        if len(found) > 1:
            suffixes = ", ".join(part.suffix for part in found)
            raise UserError(
                f"{shard}: the sample {key!r} has {len(found)} images ({suffixes}); split.image "
                "of the dataset says which one counts."
            )
        if not found:
            skipped[f".{parts[0].suffix}"] += 1
            continue
        labels = [part.content for part in parts if part.content is not None]
        value = _tar_label(labels[0], field, f"{shard}: {key}.{suffix}") if labels else None
        yield Sample(f"{key}.{found[0].suffix}", found[0].place, value)


def _tar_parts(shard: Path, label_suffix: str) -> Iterator[_Part]:
    """Yield the files of a tar that belong to a sample, with the content of labels."""
    with (
        _one_sentence(shard),
        shard.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=HeaderOrEnd) as tar,
    ):
        for entry in tar_entries(tar):
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                raise UserError(
                    f"{shard} holds {entry.name[:80]!r}, which is no plain file: refused."
                )
            folder, slash, name = inside(entry.name.removeprefix("./"), shard).rpartition("/")
            key, dot, suffix = name.partition(".")
            if not key or not dot:  # hidden, or of no sample
                continue
            content = None
            if suffix.lower() == label_suffix:
                file.seek(entry.offset_data)
                content = file.read(min(entry.size, MAX_LABEL + 1))
            place = f"{entry.offset_data}+{entry.size}"
            yield _Part(folder + slash + key, suffix.lower(), place, content)


@contextlib.contextmanager
def _one_sentence(shard: Path) -> Iterator[None]:
    """Turn whatever tarfile or the system raises for a damaged shard into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tarfile raises errors of many kinds on damaged headers
        raise UserError(
            f"{shard} is not a whole tar without compression ({first_line(error)}); download "
            "it again, or decompress it."
        ) from None


class HeaderOrEnd(tarfile.TarInfo):
    """A header or the end mark of a tar. tarfile takes anything else for the end as well."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "HeaderOrEnd":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError(f"no end mark, or a damaged header: {error}") from None


def tar_entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar that was opened with HeaderOrEnd.

    Raises:
        ReadError: an entry leads back, so that tarfile would read without end (CVE-2025-8194).
    """
    offset = 0
    while (entry := tar.next()) is not None:
        if entry.size < 0 or tar.offset <= offset:
            raise tarfile.ReadError("an entry leads back to an earlier one")
        offset = tar.offset
        yield entry
        tar.members.clear()  # type: ignore[attr-defined]  # a million take a gigabyte


def _tar_label(content: bytes, field: str, where: str) -> Label:
    """Parse a part that holds a label: an integer, a class name, or a field of JSON with either."""
    if len(content) > MAX_LABEL:
        raise UserError(f"{where} has more than {MAX_LABEL} bytes, and is no label.")
    try:
        text = content.decode("utf-8").strip()
        value = json.loads(text)[field] if field else text
    except (ValueError, LookupError, TypeError, RecursionError):
        what = f"JSON with the field {field!r}" if field else "text in UTF-8"
        raise UserError(f"{where} is not {what}; split.label says where labels are.") from None
    if isinstance(value, str) and not field and value.removeprefix("-").isdecimal():
        value = int(value[:20]) if value.isascii() else value
    return _checked_label(value, where)


def _checked_label(value: object, where: str) -> Label:
    """Return a value as a label, None where it marks an unlabelled image."""
    if value is None or value == UNLABELLED or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where} is {str(value)[:80]!r}, neither a number nor a class name.")
    return value


# --- Parquet -------------------------------------------------------------------------------------


def parquet_samples(shard: Path, label: str | None) -> Iterator[Sample]:
    """Yield the images of a Parquet file in order; without a column of labels they have none.

    Args:
        shard: the file.
        label: the column of labels; None: PARQUET_LABEL, if it is there.

    Raises:
        UserError: the file is damaged, holds no images, or lacks the column.
    """
    with _opened(shard) as file:
        images.image_column(file)
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it has more than {MAX_ROWS} rows")
        number = 0
        for group in range(file.num_row_groups):
            images.check_group(file, group)
            for row, value in enumerate(_column_of_labels(file, group, label)):
                found = _checked_label(value, f"{shard}: the label of row {number}")
                yield Sample(str(number), f"{group}+{row}", found)
                number += 1


def parquet_classnames(shards: Sequence[Path], label: str | None) -> list[str] | None:
    """Return the class names in label order that Parquet files describe, the same in all.

    Raises:
        UserError: a file is damaged, or the files describe different classes.
    """
    described = {shard: _described_names(shard, label) for shard in shards}
    first = described[shards[0]]
    for shard, names in described.items():
        if names != first:
            raise UserError(
                f"{shards[0]} and {shard} describe different classes; name them in split.classes."
            )
    if first and len(set(first)) != len(first):
        raise UserError(f"{shards[0]} names a class twice; name the classes in split.classes.")
    return first


def _described_names(shard: Path, label: str | None) -> list[str] | None:
    with _opened(shard) as file:
        try:
            described = json.loads(file.schema_arrow.metadata[FEATURES])
            names = described["info"]["features"][label or PARQUET_LABEL]["names"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def _column_of_labels(file: Any, group: int, label: str | None) -> Iterator[Any]:
    """Yield the labels of a row group."""
    names = file.schema_arrow.names
    if (label or PARQUET_LABEL) not in names:
        if label is not None:
            raise ValueError(f"it has no column {label!r} but {names}")
        yield from itertools.repeat(None, file.metadata.row_group(group).num_rows)
        return
    column = label or PARQUET_LABEL
    # Numbers take little memory, however many they are. Other values are read one by one.
    are_numbers = pa.types.is_integer(file.schema_arrow.field(column).type)
    for labels in images.rows(file, group, column, LABELS_AT_ONCE if are_numbers else 1):
        yield from labels.to_pylist()


@contextlib.contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """Open a Parquet file, and turn whatever its reader raises into a UserError."""
    try:
        with pq.ParquetFile(shard) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{shard} is not a Parquet file of images as datasets writes them "
            f"({first_line(error)}); download or write it again."
        ) from None
