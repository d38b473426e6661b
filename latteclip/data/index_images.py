"""Index a dataset's folder. Every image is decoded once, also by later runs."""

import contextlib
import inspect
import json
import logging
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from latteclip.core import tables
from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError
from latteclip.core.files import (
    DISCOVER,
    SPLITS,
    digest,
    read_object,
    replacing,
    sqlite_errors,
    sqlite_file,
)
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import Progress, log_work, one_line
from latteclip.data import images, view_hashes
from latteclip.data.splits import IndexSettings, Item, Split, read_split

log = logging.getLogger(__name__)
BATCH = 2048  # images decoded and written at a time: a killed run loses no more
# Beside the index, where Snakemake removes nothing. Other code that decodes has another cache.
CODE = digest(inspect.getsource(images), inspect.getsource(view_hashes))
CACHE = f".decode_cache_{CODE[:16]}.sqlite"
NAMED = 5  # broken images that the log and the error name
CREATE = """
    CREATE TABLE IF NOT EXISTS images (
        path TEXT PRIMARY KEY, stamp TEXT, hashes BLOB, checksum BLOB
    ) WITHOUT ROWID
"""
SELECT = (
    "SELECT images.* FROM json_each(?) CROSS JOIN images ON images.path = value"
)


class Picture(NamedTuple):
    """The perceptual hashes of a decoded image, and a checksum of its bytes."""

    hashes: bytes
    checksum: bytes


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
        proposed = {
            "class_list": os.path.abspath(classes_path),
            "class_names": None,
        }
        settings = settings.model_copy(update=proposed)
    place = Path(folder).resolve()
    split = read_split(place, settings)
    below = os.path.relpath(split.folder, place)
    root = split.folder if below.startswith(os.pardir) else Path(folder, below)
    metadata = _metadata(split, settings)
    items = split.items
    if discovery_path is not None:
        left_out = {*read_object(discovery_path)["left_out"]}
        items = [item for item in items if item.image_id not in left_out]
    if limit is not None:
        metadata.drawn_from = dict(Counter(item.split for item in items))
        items = _draw(items, limit)
    progress = Progress(len(items), "images")
    counts = Counter[str]()
    broken: list[Broken] = []
    cached = Path(output).with_name(CACHE)
    with (
        tables.writing(output, tables.IMAGES, metadata) as add,
        sqlite_errors(cached),
        contextlib.closing(sqlite_file(cached)) as cache,
        images.Workers(decode, threads) as workers,
    ):
        cache.execute(CREATE)
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            paths = [os.path.normpath(root / item.path) for item in batch]
            decoded = _decoded(paths, workers, cache, progress)
            rows = []
            for item, path in zip(batch, paths, strict=True):
                picture = decoded[path]
                if isinstance(picture, str):
                    broken.append((item.image_id, path, item.split, picture))
                    continue
                row = picture._asdict() | item._asdict() | {"path": path}
                if item.label is not None:
                    row["classname"] = metadata.classnames[item.label]
                rows.append(row)
                counts["test" if item.split == "test" else "train"] += 1
            add(pa.Table.from_pylist(rows, tables.IMAGES))
        _check(broken, items, counts, settings.max_corrupt, place)
    with (
        replacing(corrupt_output) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        tables.write_csv(file, ("image_id", "path", "split", "reason"), broken)
    log_work(
        log,
        f"Indexed {counts.total()} images: {dict(counts)}",
        progress.seconds,
        f"{progress.initial} of {len(items)} images are in the cache.",
    )


def _metadata(split: Split, settings: IndexSettings) -> IndexMetadata:
    """Return the class names, and which files are left out."""
    names: list[str] = []
    if settings.class_names != DISCOVER:
        names = clean_classnames(split.names, settings.classname_replace)
    log.info("Classes: %s", one_line(", ".join(names)))
    named = zip(names, split.names, strict=True)
    written_names = {name: written for name, written in named if name != written}
    others = dict(split.skipped.most_common())
    if others:
        suffixes = ", ".join(f"{suffix} ({n:,})" for suffix, n in others.items())
        log.warning("Left out files that are no images: %s.", suffixes)
    return IndexMetadata(names, written_names, others)


def _draw(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` images of each of SPLITS, evenly spread. No label is read."""
    chosen: list[Item] = []
    for name in SPLITS:
        of_split = [item for item in items if item.split == name]
        n = min(limit, len(of_split))
        chosen += [of_split[i * len(of_split) // n] for i in range(n)]
    return chosen


def _check(
    broken: Sequence[Broken],
    items: Sequence[Item],
    counts: Mapping[str, int],
    max_corrupt: float,
    folder: Path,
) -> None:
    """Raise UserError where too many images are broken, or a needed split has none left."""
    if broken:
        some = [
            f"{image_id} ({reason})" for image_id, _, _, reason in broken[:NAMED]
        ]
        found = (
            f"{len(broken)} of the {len(items)} images of {folder} cannot be decoded, such as "
            f"{', '.join(some)}"
        )
        if len(broken) > math.ceil(max_corrupt * len(items)):
            raise UserError(
                f"{found}; replace or remove them, or raise split.max_corrupt ({max_corrupt:.2%}) "
                "to leave them out."
            )
        log.warning("%s, and are left out.", found)
    needed = {"train", *(item.split for item in items)} - {"val"}
    if all(item.label is not None for item in items):
        needed.add("test")
    if missing := needed - counts.keys():
        raise UserError(
            f"{folder} has no usable image in the split {missing.pop()}; add some, or sort the "
            "images into the folders train and test."
        )


def decode(path: str) -> Decoded:
    """Decode an image, and return what the index has of it, or why it cannot be decoded."""
    try:
        content = images.read_bytes(path)
        picture = images.decode(content)
    except Exception as error:  # decoders fail in many ways on broken files
        return images.reason(error)
    return Picture(view_hashes.view_hashes(picture), images.checksum(content))


def _decoded(
    paths: Sequence[str],
    workers: images.Workers[str, Decoded],
    cache: sqlite3.Connection,
    progress: Progress,
) -> dict[str, Decoded]:
    """Return the pictures of images by path, from the cache or decoded now."""
    stamps = {path: _stamp(path) for path in paths}
    decoded: dict[str, Decoded] = {
        path: Picture(*values)
        for path, stamp, *values in cache.execute(SELECT, [json.dumps([*stamps])])
        if stamps[path] == stamp  # neither new nor changed
    }
    progress.skip(len(decoded))
    new = [path for path in stamps if path not in decoded]
    found = dict(zip(new, workers.in_order(new), strict=True))
    write_cache(cache, found, stamps)
    progress.add(len(found))
    return decoded | found


def write_cache(
    cache: sqlite3.Connection,
    decoded: Mapping[str, Decoded],
    stamps: Mapping[str, str],
) -> None:
    """Write the pictures of images that could be decoded, with earlier stamps of their files."""
    rows = [
        (path, stamps[path], *result)
        for path, result in decoded.items()
        if isinstance(result, Picture)
    ]
    with cache:
        cache.executemany("INSERT OR REPLACE INTO images VALUES (?,?,?,?)", rows)


def _stamp(path: str) -> str:
    """Return size and time of the file that holds an image, "" where there is none."""
    try:
        return images.stamp(images.container_of(path))
    except OSError:
        return ""
