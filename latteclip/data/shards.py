"""Read the images and labels of shards, which are files of thousands of images each.

A tar of WebDataset has samples: `key.jpg` beside `key.cls`, `key.txt` or `key.json`. A Parquet file
of Hugging Face `datasets` has the bytes of an image beside a label. Headers and labels are read
here, images later by their place in the shard (`images.shard_member`).
"""

import contextlib
import glob
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from latteclip.core.errors import UserError, first_line
from latteclip.data import images
from latteclip.data.archives import HeaderOrEnd, tar_entries
from latteclip.data.images import IMAGE_SUFFIXES, suffix_of, walk

# Suffixes of shards, by kind of split.
SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
# The word of a shard's path that names its split, such as train or validation.
WORD = re.compile(
    r"(?<![a-z0-9])(train|val|test|dev)(?:ing|id|idation)?(?=[^a-z]|$)"
)
# Key and suffix of a part of a sample.
PART = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
MAX_LABEL = 2**20  # bytes of a part that holds a label
MAX_ROWS = 10**7  # rows of a Parquet file, at most: a footer may claim any number
# The key of metadata in which `datasets` describes columns.
FEATURES = b"huggingface"
# Name and place of an image, as `images.shard_member` reads it after #, and a label of any type.
Sample = tuple[str, str, Any]


def find_shards(
    folder: Path, kind: str, globs: Mapping[Any, str]
) -> dict[str, str]:
    """Return the split of each shard by globs, or by a word of its path, "" where it has none."""
    split_of = dict[str, str]()
    for split, pattern in globs.items():
        fitting = glob.glob(pattern, root_dir=folder, recursive=True)
        if not fitting:
            raise UserError(
                f"No shard in {folder} fits {pattern!r}, split.lists.{split}."
            )
        split_of |= dict.fromkeys(sorted(fitting), split)
    if split_of:
        return split_of
    for name, _ in walk(folder):
        if suffix_of(name) == SUFFIXES[kind]:
            words = WORD.findall(name.lower())
            split = words[-1] if words else ""
            split_of[name] = "val" if split == "dev" else split
    nameless = [name for name, split in split_of.items() if not split]
    if not split_of or 0 < len(nameless) < len(split_of):
        raise UserError(
            f"{folder} must hold {SUFFIXES[kind]} files (split.images sets the folder), and all or "
            f"none have train, val or test in the name (or split.lists), not {nameless[:3]}."
        )
    return split_of


def read_shard(
    shard: Path, kind: str, label: str | None
) -> tuple[list[Sample], tuple[str, ...]]:
    """Return the images of a shard in order, and the class names in label order that it describes.

    `label` is the column of labels, or the suffix of a tar's parts with labels, after a colon with
    the field of JSON that is one.
    """
    try:
        if kind == "webdataset":
            return list(_tar_samples(shard, label)), ()
        with pq.ParquetFile(shard) as file:
            return list(_parquet_samples(file, label)), _described_classes(
                file, label
            )
    # Tarfile raises errors of many kinds on damaged headers.
    except Exception as error:
        raise UserError(
            f"{shard} is neither a complete tar without compression nor a Parquet file of images "
            f"as `datasets` writes it ({first_line(error)}); download or write it again, or set "
            "split.label to its labels."
        ) from None


def _tar_samples(shard: Path, label: str | None) -> Iterator[Sample]:
    """Yield the images of a tar in order."""
    suffix_of_labels, _, json_field = (label or "cls").partition(":")
    with tarfile.open(shard, "r:", tarinfo=HeaderOrEnd) as tar:
        for key, group in itertools.groupby(_tar_parts(tar), itemgetter(0)):
            parts = {suffix: entry for _, suffix, entry in group}
            labels = parts.get(suffix_of_labels.lower())
            text = _tar_label(tar, labels, json_field) if labels else None
            for suffix, image in parts.items():
                if f".{suffix}" in IMAGE_SUFFIXES:
                    yield (
                        f"{key}.{suffix}",
                        f"{image.offset_data}+{image.size}",
                        text,
                    )


def _tar_parts(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the parts of samples: key, suffix in lower case, and entry."""
    for entry in tar_entries(tar):
        # A key is a path up to the first dot of its last part.
        part = PART.fullmatch(entry.name.removeprefix("./"))
        if not entry.isreg() and not entry.isdir():
            raise tarfile.ReadError(f"{entry.name[:80]!r} is not a plain file")
        if part and entry.isreg():  # neither hidden nor of no sample
            yield part[1], part[2].lower(), entry


def _tar_label(
    tar: tarfile.TarFile, entry: tarfile.TarInfo, json_field: str
) -> str:
    """Read a part that holds a number or a class name, in a field of JSON if one is named."""
    try:
        if entry.size > MAX_LABEL:
            raise ValueError
        content: Any = tar.extractfile(entry)
        text = content.read().decode().strip()
        label = str(json.loads(text)[json_field] if json_field else text)
        label.encode()  # JSON may name half of a character
        return label
    except (ValueError, LookupError, TypeError, RecursionError):
        form = f"JSON with {json_field!r}" if json_field else "text in UTF-8"
        raise ValueError(
            f"{entry.name[:80]!r} is not {form} of {MAX_LABEL} bytes"
        ) from None


def _parquet_samples(file: pq.ParquetFile, label: str | None) -> Iterator[Sample]:
    """Yield the images of a Parquet file in order, with None where it has no column of labels."""
    column, names = label or "label", file.schema_arrow.names
    images.image_column(file)
    sizes = [
        file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)
    ]
    if sum(map(abs, sizes)) > MAX_ROWS:
        raise ValueError(f"it has more than {MAX_ROWS} rows")
    if label and label not in names:
        raise ValueError(f"it has no column {label!r} but {names}")
    number = itertools.count()
    for group, size in enumerate(sizes):
        labels: Iterable[Any] = itertools.repeat(None, size)
        if column in names:
            labels = (
                value[0].as_py() for value in images.rows(file, group, column)
            )
        for row, value in enumerate(labels):
            yield str(next(number)), f"{group}+{row}", value


def _described_classes(file: pq.ParquetFile, label: str | None) -> tuple[str, ...]:
    """Return the class names in label order that a Parquet file describes, if any."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        features = json.loads(file.schema_arrow.metadata[FEATURES])["info"][
            "features"
        ]
        names = features[label or "label"]["names"]
        return TypeAdapter(tuple[str, ...]).validate_python(names)
    return ()
