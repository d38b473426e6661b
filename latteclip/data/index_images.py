"""Index a dataset's folder. Every image is decoded once, also by later runs.

Letters: N images, C classes.
"""

import csv
import hashlib
import io
import itertools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latteclip.core import tables
from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.terminal import Progress
from latteclip.data import folder_files
from latteclip.data.decode_cache import DecodeCache, FileStats, file_stats
from latteclip.data.fingerprints import FINGERPRINTS, Fingerprint, fingerprint
from latteclip.data.images import open_or_reason, read_or_reason
from latteclip.data.splits import Item, Split, SplitSettings, draw, read_split
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
CHUNK = 64  # images that a worker takes at a time
AHEAD = 3  # chunks that are ready or wait, for each worker
BATCH = 128 * CHUNK  # images written at a time
CACHED_TOGETHER = 8 * CHUNK  # images: a killed run loses no more
CACHE = ".decode_cache.sqlite"  # beside the index, where Snakemake removes nothing
LOGGED = 100  # broken images that the log names
NAMED = 5  # broken images that the error names, and half of the classes that the log names
Decoded = Fingerprint | str  # or the reason why the image cannot be decoded


def index_images(
    folder: str,
    settings: SplitSettings,
    output: str,
    corrupt_output: str,
    fingerprints_output: str,
    *,
    threads: int,
    folder_state: str | None = None,
    folder_files_output: str | None = None,
) -> None:
    """Write the IMAGES table of a dataset.

    Its metadata are class names, `skipped` files and `content`, a digest of all images' bytes.
    Class names are cleaned for CLIP. `written_names` are those that the dataset writes differently.
    With a limit, `limit` is among the metadata, and `drawn_from`, the images of each whole split.
    FINGERPRINTS of the images, by which `find_duplicates` compares them, are written as well.

    Images that cannot be decoded are left out and listed in a CSV file beside it. Files with other
    suffixes are counted by suffix. Decoded images are cached in CACHE beside the index, so that a
    killed run continues, and a later run decodes new and changed images only.

    Raises:
        UserError: the split does not fit its form or the folder, or too many images are broken.
    """
    started = time.monotonic()
    in_folder = []
    if folder_state:
        in_folder = list(folder_files.files(folder, settings.kind, settings.classes))
    images, split = read_split(Path(folder), settings)
    classnames = clean_classnames(split.names, settings.classname_replace)
    counts = Counter[str]()
    broken: list[list[str]] = []
    pairs = zip(classnames, split.names, strict=True)
    written = {name: written for name, written in pairs if name != written}
    metadata: dict[str, object] = {
        "classnames": classnames,
        "written_names": written,
        "skipped": split.skipped,
    }
    if settings.limit is not None:
        metadata["limit"] = settings.limit
        metadata["drawn_from"] = dict(Counter(item.split for item in split.items))
        split = draw(split, settings.limit)
    content = hashlib.sha256()
    with (
        tables.writing(output, tables.IMAGES, metadata) as add,
        tables.writing(fingerprints_output, FINGERPRINTS) as add_fingerprints,
        replacing(corrupt_output) as corrupt,
        DecodeCache(Path(output).with_name(CACHE)) as cache,
    ):
        for items, decoded in _batches(images, split.items, threads, cache):
            good = [
                (item, found)
                for item, found in zip(items, decoded, strict=True)
                if not isinstance(found, str)
            ]
            counts.update(item.split for item, _ in good)
            broken += [
                [item.image_id, _path(images, item), item.split, reason]
                for item, reason in zip(items, decoded, strict=True)
                if isinstance(reason, str)
            ]
            add(_columns(images, good, classnames))
            add_fingerprints(_fingerprints(good))
            content.update(b"".join(found.checksum for _, found in good))
        _report(broken, corrupt)
        _check(broken, split, counts, settings.max_corrupt, folder)
        metadata["content"] = content.hexdigest()
        if folder_state and folder_files_output:
            state = (folder_state, folder_files_output)
            _write_folder_files(folder, in_folder, state, cache, settings.limit)
    if split.skipped:
        counted = ", ".join(f"{n} {suffix}" for suffix, n in split.skipped.items())
        n_skipped = sum(split.skipped.values())
        log.warning("Left out %d files that are no images: %s.", n_skipped, counted)
    more = f" and {len(classnames) - 2 * NAMED} more" if len(classnames) > 2 * NAMED else ""
    log.info("Classes: %s%s.", ", ".join(classnames[: 2 * NAMED]), more)
    seconds = time.monotonic() - started
    log.info(
        "Indexed %d images of %d classes (%d train, %d val, %d test) in %.1f s, %.0f images/s.",
        counts.total(),
        len(classnames),
        *(counts[part] for part in ("train", "val", "test")),
        seconds,
        len(split.items) / seconds,
    )


def _write_folder_files(
    folder: str,
    files: list[folder_files.File],
    state: tuple[str, str],
    cache: DecodeCache,
    limit: int | None,
) -> None:
    """Write the table of the folder's files from which the index was made.

    Files that are no image of the index, such as lists and shards, are read for their checksums. A
    limited run does not read them, so that a new time counts as a change.
    """

    def read_checksum(path: str) -> bytes:
        return folder_files.checksum(path) if limit is None else folder_files.UNKNOWN

    def checksums(part: list[folder_files.File]) -> list[bytes]:
        paths = [os.path.normpath(os.path.join(folder, file.name)) for file in part]
        stats = np.array([(file.size, file.mtime_ns) for file in part], np.int64)
        return [
            cached.checksum if cached else read_checksum(path)
            for path, cached in zip(paths, cache.get(paths, stats), strict=True)
        ]

    described, output = state
    folder_files.write(output, files, described, checksums)


def _columns(
    images: Path, rows: Sequence[tuple[Item, Fingerprint]], classnames: Sequence[str]
) -> dict[str, list[str | int | None]]:
    """Return the IMAGES columns of some images."""
    return {
        "image_id": [item.image_id for item, _ in rows],
        "path": [_path(images, item) for item, _ in rows],
        "split": [item.split for item, _ in rows],
        "label": [item.label for item, _ in rows],
        "classname": [None if i.label is None else classnames[i.label] for i, _ in rows],
        "width": [found.width for _, found in rows],
        "height": [found.height for _, found in rows],
    }


def _fingerprints(rows: Sequence[tuple[Item, Fingerprint]]) -> dict[str, list[str] | list[bytes]]:
    """Return the FINGERPRINTS columns of some images."""
    return {
        "image_id": [item.image_id for item, _ in rows],
        "hashes": [found.hashes for _, found in rows],
        "thumbnail": [found.thumbnail for _, found in rows],
    }


def decode(path: str) -> Decoded:
    """Decode an image, and return its fingerprint or the reason why it cannot be decoded."""
    content = read_or_reason(path)
    if isinstance(content, str):
        return content
    picture = open_or_reason(path, io.BytesIO(content))
    checksum = folder_files.checksum_of(content)
    return picture if isinstance(picture, str) else fingerprint(picture, checksum)


def _path(images: Path, item: Item) -> str:
    return os.path.normpath(images / item.path)


def _report(broken: Sequence[Sequence[str]], output: Path) -> None:
    """List the broken images in a CSV file and, up to a number, in the log."""
    with output.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image_id", "path", "split", "reason"], *broken])
    for image_id, _, _, reason in broken[:LOGGED]:
        log.warning("Cannot be decoded: %s (%s)", image_id, reason)
    if len(broken) > LOGGED:
        log.warning("... and %d more that cannot be decoded.", len(broken) - LOGGED)


def _check(
    broken: Sequence[Sequence[str]],
    split: Split,
    counts: Counter[str],
    max_corrupt: float,
    folder: str,
) -> None:
    """Raise UserError where too many images are broken, or a needed split has none left."""
    n_images = len(split.items)
    if len(broken) > max_corrupt * n_images:
        first = ", ".join(f"{image_id} ({reason})" for image_id, _, _, reason in broken[:NAMED])
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        enough = math.ceil(100 * len(broken) / n_images) / 100
        raise UserError(
            f"{len(broken)} of the {n_images} images of {folder} cannot be decoded, more than "
            f"{max_corrupt:.2%}: {first}{more}. Replace or remove them, or let them be left out: "
            f"--config \"split={{'max_corrupt': {enough}}}\"."
        )
    left = {"train": counts["train"] + counts["val"]}
    if split.needs_test_images:
        left["test"] = counts["test"]
    for name, n in left.items():
        if not n:
            raise UserError(f"{folder} has no usable image in the {name} split.")
    if broken:
        log.warning("Left out %d of %d images that cannot be decoded.", len(broken), n_images)


def _batches(
    images: Path, items: Sequence[Item], threads: int, cache: DecodeCache
) -> Iterator[tuple[Sequence[Item], list[Decoded]]]:
    """Yield items and their decoded images in order, BATCH at a time.

    All threads decode the images that are not in the cache.
    """
    stats, is_new = _compare(images, items, cache)  # [N, 2] and [N]
    progress = Progress(int(is_new.sum()), "images")
    with Workers(
        decode,
        threads,
        chunk=CHUNK,
        ahead=AHEAD * threads,
        name=str,
        threads_key="threads.index_images",
    ) as workers:
        results = workers.in_order(_path(images, items[i]) for i in np.flatnonzero(is_new).tolist())
        for start in range(0, len(items), BATCH):
            part = slice(start, start + BATCH)
            paths = [_path(images, item) for item in items[part]]
            decoded: list[Decoded | None] = [*cache.get(paths, stats[part])]
            rows = np.flatnonzero(is_new[part]).tolist()
            for first in range(0, len(rows), CACHED_TOGETHER):
                piece = rows[first : first + CACHED_TOGETHER]
                for row, result in zip(piece, itertools.islice(results, len(piece)), strict=True):
                    decoded[row] = result
                    progress.add(1)
                _put(cache, piece, paths, stats[part], decoded)
            yield (
                items[part],
                [one or decode(path) for path, one in zip(paths, decoded, strict=True)],
            )


def _compare(
    images: Path, items: Sequence[Item], cache: DecodeCache
) -> tuple[FileStats, npt.NDArray[np.bool_]]:
    """Return the stats of all files [N, 2], and which images are not in the cache [N]."""
    stats = np.empty((len(items), 2), np.int64)
    is_new = np.empty(len(items), np.bool_)
    for start in range(0, len(items), BATCH):
        part = slice(start, start + BATCH)
        paths = [_path(images, item) for item in items[part]]
        stats[part] = file_stats(paths)
        is_new[part] = [one is None for one in cache.get(paths, stats[part])]
    if not is_new.all():
        log.info("%d of %d images are in the cache.", len(items) - is_new.sum(), len(items))
    return stats, is_new


def _put(
    cache: DecodeCache,
    rows: Sequence[int],
    paths: Sequence[str],
    stats: FileStats,
    decoded: Sequence[Decoded | None],
) -> None:
    """Cache the images of some rows. An image that cannot be decoded is tried again next time."""
    good = {row: one for row in rows if isinstance(one := decoded[row], Fingerprint)}
    cache.put([paths[row] for row in good], stats[list(good)], list(good.values()))
