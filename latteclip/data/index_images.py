"""Index a dataset's folder. Every image is decoded once, also by later runs."""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from latteclip import __version__
from latteclip.config.keys import IndexSettings
from latteclip.core import tables
from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError
from latteclip.core.files import DISCOVER, SPLITS, read_object, replacing, sqlite_uri
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import Progress, one_line
from latteclip.data import find_duplicates, folder_files
from latteclip.data import images as image_files
from latteclip.data.images import Workers, checksum
from latteclip.data.splits import Item, Split, read_split

log = logging.getLogger(__name__)
BATCH = 8192  # images written at a time
CACHED_TOGETHER = 512  # images: a killed run loses no more
# Beside the index, where Snakemake removes nothing. Another version decodes again.
CACHE = f".decode_cache_{__version__}.sqlite"
LOGGED = 100  # broken images that the log names
NAMED = 5  # broken images that the error names
CREATE = """
    CREATE TABLE IF NOT EXISTS images (
        path TEXT PRIMARY KEY, stamp TEXT,
        width INTEGER, height INTEGER, hashes BLOB, checksum BLOB
    ) WITHOUT ROWID
"""
SELECT = "SELECT images.* FROM json_each(?) CROSS JOIN images ON images.path = value"


class Picture(NamedTuple):
    """The size of a decoded image, its perceptual hashes, and a checksum of its bytes."""

    width: int
    height: int
    hashes: bytes
    checksum: bytes


Stamps = Mapping[
    str, str
]  # size and time of the file that holds an image, by the image's path
Decoded = Picture | str  # or the reason why the image cannot be decoded
Broken = tuple[str, str, str, str]  # image_id, path, split and reason


def index_images(
    folder: str,
    settings: IndexSettings,
    output: str,
    corrupt_output: str,
    *,
    threads: int,
    classes_path: str | None = None,
    discovery_path: str | None = None,
    limit: int | None = None,
) -> None:
    """Write the IMAGES table of a dataset.

    Paths lead through `folder` if it is a link (`folder_files.link`), and messages name its target.
    `classes_path` lists the classes that a stage has proposed, and `discovery_path` the images that
    a person left out then. Until then, where `class_names` is "discover", the index has no classes,
    and all its images are training images without labels.

    Images that cannot be decoded are left out and listed in a CSV file. Decoded images are cached
    beside the index, so that a killed run continues. Raises UserError where the split does not fit
    its form or the folder, or too many images are broken.
    """
    if classes_path is not None:
        proposed = {"class_list": os.path.abspath(classes_path), "class_names": None}
        settings = settings.model_copy(update=proposed)
    place = folder_files.linked(folder)
    images, split = read_split(Path(place), settings)
    if discovery_path is not None:
        left_out = {*read_object(discovery_path)["left_out"]}
        items = [item for item in split.items if item.image_id not in left_out]
        split = replace(split, items=items)
    below = os.path.relpath(images, place)
    if not below.startswith(os.pardir):
        images = Path(folder, below)
    metadata = IndexMetadata(classnames=[], skipped=dict(split.skipped))
    if settings.class_names != DISCOVER:
        metadata.classnames = clean_classnames(split.names, settings.classname_replace)
    named = zip(metadata.classnames, split.names, strict=True)
    metadata.written_names = {name: written for name, written in named if name != written}
    if limit is not None:
        metadata.limit = limit
        metadata.drawn_from = dict(Counter(item.split for item in split.items))
        split = _draw(split, limit)
    counts = Counter[str]()
    broken: list[Broken] = []
    content = hashlib.sha256()
    with (
        tables.writing(output, tables.IMAGES, metadata) as add,
        _open_cache(Path(output).with_name(CACHE)) as cache,
    ):
        for batch in _batches(images, split.items, threads, cache):
            rows = []
            for item, path, decoded in batch:
                if isinstance(decoded, str):
                    broken.append((item.image_id, path, item.split, decoded))
                    continue
                row = decoded._asdict() | item._asdict() | {"path": path}
                if item.label is not None:
                    row["classname"] = metadata.classnames[item.label]
                rows.append(row)
                counts[item.split] += 1
                content.update(decoded.checksum)
            add(pa.Table.from_pylist(rows, tables.IMAGES))
        _check(broken, split, counts, settings.max_corrupt, place)
        metadata.content = content.hexdigest()
    with (
        replacing(corrupt_output) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        tables.write_csv(file, ("image_id", "path", "split", "reason"), broken)
    if split.skipped:
        log.warning("Left out files that are no images, by suffix: %s.", split.skipped)
    log.info("Classes: %s", one_line(", ".join(metadata.classnames)))
    log.info("Indexed %d images: %s.", counts.total(), dict(counts))


def _draw(split: Split, limit: int) -> Split:
    """Return at most `limit` images of each of SPLITS, evenly spread. No label is read."""
    chosen: list[int] = []
    for name in SPLITS:
        rows = [row for row, item in enumerate(split.items) if item.split == name]
        n = min(limit, len(rows))
        chosen += [rows[i * len(rows) // n] for i in range(n)]
    return replace(split, items=[split.items[row] for row in sorted(chosen)])


def _check(
    broken: Sequence[Broken],
    split: Split,
    counts: Counter[str],
    max_corrupt: float,
    folder: str,
) -> None:
    """Raise UserError where too many images are broken, or a needed split has none left."""
    n_images = len(split.items)
    for image_id, _, _, reason in broken[:LOGGED]:
        log.warning("Cannot be decoded and is left out: %s (%s)", image_id, reason)
    if len(broken) > math.ceil(max_corrupt * n_images):
        named = [f"{image_id} ({reason})" for image_id, _, _, reason in broken[:NAMED]]
        raise UserError(
            f"{len(broken)} of the {n_images} images of {folder} cannot be decoded, more than "
            f"{max_corrupt:.2%}, such as {', '.join(named)}. Replace or remove them, or raise "
            "split.max_corrupt to leave them out."
        )
    needed = {"train"}
    if any(item.split == "test" for item in split.items) or all(
        item.label is not None for item in split.items
    ):
        needed.add("test")
    usable = {"train" if name == "val" else name for name in counts}
    if missing := needed - usable:
        raise UserError(
            f"{folder} has no usable image in the split {missing.pop()}; add some, or sort the "
            "images into the folders train and test."
        )


def decode(path: str) -> Decoded:
    """Decode an image, and return what the index has of it, or why it cannot be decoded."""
    try:
        content = image_files.read_bytes(path)
        picture = image_files.decode(io.BytesIO(content))
    except Exception as error:  # decoders fail in many ways on broken files
        return image_files.reason(error)
    return Picture(*picture.size, find_duplicates.view_hashes(picture), checksum(content))


def _batches(
    images: Path, items: Sequence[Item], threads: int, cache: sqlite3.Connection
) -> Iterator[list[tuple[Item, str, Decoded]]]:
    """Yield items with their paths and decoded images in order, BATCH at a time."""
    progress = Progress(len(items), "images")
    n_cached = 0
    with Workers(decode, threads) as workers:
        for start in range(0, len(items), BATCH):
            part = items[start : start + BATCH]
            paths = [os.path.normpath(images / item.path) for item in part]
            stamps = file_stamps(paths)
            decoded = read_cache(cache, stamps)
            progress.skip(len(decoded))
            n_cached += len(decoded)
            new = [path for path in stamps if path not in decoded]
            results = zip(new, workers.in_order(new), strict=True)
            while batch := dict(itertools.islice(results, CACHED_TOGETHER)):
                decoded |= batch
                write_cache(cache, batch, stamps)
                progress.add(len(batch))
            pairs = zip(part, paths, strict=True)
            yield [(item, path, decoded[path]) for item, path in pairs]
    log.info("%d of %d images are in the cache.", n_cached, len(items))


@contextlib.contextmanager
def _open_cache(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a cache of decoded images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(sqlite_uri(path), uri=True)) as file:
            file.execute(CREATE)
            yield file
    except sqlite3.Error as error:
        raise UserError(
            f"{path}, the cache of decoded images, cannot be used ({error}); free some space on "
            "the disk, or delete the file, and rerun."
        ) from None


def read_cache(cache: sqlite3.Connection, stamps: Stamps) -> dict[str, Decoded]:
    """Return the pictures of images, by path, without new and changed images."""
    return {
        path: Picture(*values)
        for path, stamp, *values in cache.execute(SELECT, [json.dumps([*stamps])])
        if stamps[path] == stamp
    }


def write_cache(
    cache: sqlite3.Connection, decoded: Mapping[str, Decoded], stamps: Stamps
) -> None:
    """Write the pictures of images that could be decoded, with earlier stamps of their files."""
    rows = [
        (path, stamps[path], *result)
        for path, result in decoded.items()
        if isinstance(result, Picture)
    ]
    with cache:
        cache.executemany("INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?)", rows)


def file_stamps(paths: Iterable[str]) -> Stamps:
    """Return the stamps of the files that hold images, by path, "" where there is none."""
    containers = {path: image_files.container_of(path) for path in paths}
    stamps = dict.fromkeys(containers.values(), "")  # the images of a shard share one
    for container in stamps:
        with contextlib.suppress(OSError):
            stamps[container] = folder_files.stamp(os.stat(container))
    return {path: stamps[container] for path, container in containers.items()}
