"""From a dataset's folder to the image index: every image is decoded once, also by later runs.

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
from latteclip.data.decoded_before import DecodedBefore, Stamps, stamps
from latteclip.data.fingerprints import FINGERPRINTS, Fingerprint, fingerprint
from latteclip.data.images import open_or_reason, read_or_reason
from latteclip.data.splits import Item, Split, SplitSettings, draw, read_split
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
CHUNK = 64  # images that a worker takes at a time
AHEAD = 3  # chunks that are ready or wait, for each worker
BATCH = 128 * CHUNK  # images written at a time
KEPT = 8 * CHUNK  # images after which is kept what was seen of them
BEFORE = ".decoded.sqlite"  # beside the index, where Snakemake removes nothing
SHOWN = 100  # broken images that the log names
NAMED = 5  # of them by the error, and twice as many classes by the log
Decoded = Fingerprint | str  # or why the image cannot be decoded


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
    Class names are cleaned for CLIP. `written_names` are those that the dataset writes otherwise.
    With a limit, `limit` is among the metadata, and `drawn_from`, the images of each whole split.
    FINGERPRINTS of the images, by which `find_duplicates` compares them, are written as well.

    Images that cannot be decoded are left out and listed in a CSV file beside it. Files that are no
    images by their suffix are counted by it. What was seen of images is kept in BEFORE beside the
    index: a run that was killed goes on, and one after others decodes new and changed images alone.

    Raises:
        UserError: the split does not fit its form or the folder, or too many images are broken.
    """
    started = time.monotonic()
    looked_at = (settings.kind, settings.classes)
    in_folder = list(folder_files.files(folder, *looked_at)) if folder_state else []
    images, split = read_split(Path(folder), settings)
    classnames = clean_classnames(split.names, settings.classname_replace)
    counts = Counter[str]()
    broken: list[list[str]] = []
    pairs = zip(classnames, split.names, strict=True)
    written = {name: own for name, own in pairs if name != own}
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
        DecodedBefore(Path(output).with_name(BEFORE)) as before,
    ):
        for items, decoded in _batches(images, split.items, threads, before):
            good = [
                (item, seen)
                for item, seen in zip(items, decoded, strict=True)
                if not isinstance(seen, str)
            ]
            counts.update(item.split for item, _ in good)
            broken += [
                [item.image_id, _path(images, item), item.split, reason]
                for item, reason in zip(items, decoded, strict=True)
                if isinstance(reason, str)
            ]
            add(_columns(images, good, classnames))
            add_fingerprints(_fingerprints(good))
            content.update(b"".join(seen.checksum for _, seen in good))
        _report(broken, corrupt)
        _check(broken, split, counts, settings.max_corrupt, folder)
        metadata["content"] = content.hexdigest()
        if folder_state and folder_files_output:
            state = (folder_state, folder_files_output)
            _remember(folder, in_folder, state, before, settings.limit)
    if split.skipped:
        said = ", ".join(f"{n} {suffix}" for suffix, n in split.skipped.items())
        log.warning("Left out %d files that are no images: %s.", sum(split.skipped.values()), said)
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


def _remember(
    folder: str,
    files: list[folder_files.File],
    state: tuple[str, str],
    before: DecodedBefore,
    limit: int | None,
) -> None:
    """Write which files of the folder the index was made of.

    Those that are no image of the index, such as lists and shards, are read for their checksums;
    in a limited run they are not, and count as new when their time is.
    """

    def unseen(path: str) -> bytes:
        return folder_files.checksum(path) if limit is None else folder_files.UNKNOWN

    def checksums(part: list[folder_files.File]) -> list[bytes]:
        paths = [os.path.normpath(os.path.join(folder, file.name)) for file in part]
        found = np.array([(file.size, file.mtime_ns) for file in part], np.int64)
        return [
            seen.checksum if seen else unseen(path)
            for path, seen in zip(paths, before.find(paths, found), strict=True)
        ]

    described, output = state
    folder_files.write(output, files, described, checksums)


def _columns(
    images: Path, rows: Sequence[tuple[Item, Fingerprint]], classnames: Sequence[str]
) -> dict[str, list[str | int | None]]:
    """The IMAGES columns of some images."""
    return {
        "image_id": [item.image_id for item, _ in rows],
        "path": [_path(images, item) for item, _ in rows],
        "split": [item.split for item, _ in rows],
        "label": [item.label for item, _ in rows],
        "classname": [None if i.label is None else classnames[i.label] for i, _ in rows],
        "width": [seen.width for _, seen in rows],
        "height": [seen.height for _, seen in rows],
    }


def _fingerprints(rows: Sequence[tuple[Item, Fingerprint]]) -> dict[str, list[str] | list[bytes]]:
    """The FINGERPRINTS columns of some images."""
    return {
        "image_id": [item.image_id for item, _ in rows],
        "hashes": [seen.hashes for _, seen in rows],
        "thumbnail": [seen.thumbnail for _, seen in rows],
    }


def look_at(path: str) -> Decoded:
    """Decode an image, and keep of it what the tables hold."""
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
    for image_id, _, _, reason in broken[:SHOWN]:
        log.warning("Cannot be decoded: %s (%s)", image_id, reason)
    if len(broken) > SHOWN:
        log.warning("... and %d more that cannot be decoded.", len(broken) - SHOWN)


def _check(
    broken: Sequence[Sequence[str]],
    split: Split,
    counts: Counter[str],
    max_corrupt: float,
    folder: str,
) -> None:
    """UserError where too many images are broken, or a split that is needed has none left."""
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
    images: Path, items: Sequence[Item], threads: int, before: DecodedBefore
) -> Iterator[tuple[Sequence[Item], list[Decoded]]]:
    """Items and what became of them, in order, BATCH at a time.

    Those that were not decoded before are decoded now, with all threads.
    """
    found, is_new = _compared(images, items, before)  # [N, 2] and [N]
    progress = Progress(int(is_new.sum()), "images")
    with Workers(
        look_at,
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
            seen: list[Decoded | None] = [*before.find(paths, found[part])]
            rows = np.flatnonzero(is_new[part]).tolist()
            for first in range(0, len(rows), KEPT):
                piece = rows[first : first + KEPT]
                for row, result in zip(piece, itertools.islice(results, len(piece)), strict=True):
                    seen[row] = result
                    progress.add(1)
                _keep(before, piece, paths, found[part], seen)
            yield (
                items[part],
                [one or look_at(path) for path, one in zip(paths, seen, strict=True)],
            )


def _compared(
    images: Path, items: Sequence[Item], before: DecodedBefore
) -> tuple[Stamps, npt.NDArray[np.bool_]]:
    """The stamps of all files [N, 2], and which images are to be decoded [N]."""
    found = np.empty((len(items), 2), np.int64)
    is_new = np.empty(len(items), np.bool_)
    for start in range(0, len(items), BATCH):
        part = slice(start, start + BATCH)
        paths = [_path(images, item) for item in items[part]]
        found[part] = stamps(paths)
        is_new[part] = [one is None for one in before.find(paths, found[part])]
    if not is_new.all():
        log.info("%d of %d images were decoded before.", len(items) - is_new.sum(), len(items))
    return found, is_new


def _keep(
    before: DecodedBefore,
    rows: Sequence[int],
    paths: Sequence[str],
    found: Stamps,
    seen: Sequence[Decoded | None],
) -> None:
    """Keep what was seen in some rows; whatever cannot be decoded is tried again another time."""
    good = {row: one for row in rows if isinstance(one := seen[row], Fingerprint)}
    before.keep([paths[row] for row in good], found[list(good)], list(good.values()))
