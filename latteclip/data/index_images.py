"""From a dataset's folder to the image index: every image is decoded once.

Letters: N images, C classes.
"""

import csv
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.progress import Progress
from latteclip.core.prompts import clean_classnames
from latteclip.data.fingerprints import FINGERPRINTS, Fingerprint, fingerprint
from latteclip.data.images import open_or_reason
from latteclip.data.split_files import Item, Split
from latteclip.data.splits import SplitSettings, read_split
from latteclip.data.workers import Workers

log = logging.getLogger(__name__)
CHUNK = 64  # images that a worker takes at a time
AHEAD = 3  # chunks that are ready or wait, for each worker
BATCH = 128 * CHUNK  # images written at a time
SHOWN = 100  # broken images that the log names
Decoded = Fingerprint | str  # or why the image cannot be decoded


def index_images(
    folder: str,
    settings: SplitSettings,
    output: str,
    corrupt_output: str,
    fingerprints_output: str,
    *,
    threads: int,
) -> None:
    """Write the IMAGES table of a dataset, with class names and `skipped` files as metadata.

    FINGERPRINTS of the images, by which `find_duplicates` compares them, are written as well.

    Images that cannot be decoded are left out and listed in a CSV file beside it. Files that are no
    images by their suffix are counted by it.

    Raises:
        UserError: the split does not fit its form or the folder, or too many images are broken.
    """
    started = time.monotonic()
    images, split = read_split(Path(folder), settings)
    classnames = clean_classnames(split.names, settings.classname_replace)
    counts = Counter[str]()
    broken: list[list[str]] = []
    metadata = {"classnames": classnames, "skipped": split.skipped}
    with (
        tables.writing(output, tables.IMAGES, metadata) as add,
        tables.writing(fingerprints_output, FINGERPRINTS) as add_fingerprints,
        replacing(corrupt_output) as corrupt,
    ):
        for items, decoded in _batches(images, split.items, threads):
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
        _report(broken, corrupt)
        _check(broken, split, counts, settings.max_corrupt, folder)
    if split.skipped:
        said = ", ".join(f"{n} {suffix}" for suffix, n in split.skipped.items())
        log.warning("Left out %d files that are no images: %s.", sum(split.skipped.values()), said)
    seconds = time.monotonic() - started
    log.info(
        "Indexed %d images of %d classes (%d train, %d val, %d test) in %.1f s, %.0f images/s.",
        counts.total(),
        len(classnames),
        *(counts[part] for part in ("train", "val", "test")),
        seconds,
        len(split.items) / seconds,
    )


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
    """Decode an image file, and keep of it what the tables hold."""
    picture = open_or_reason(path)
    return picture if isinstance(picture, str) else fingerprint(picture)


def _path(images: Path, item: Item) -> str:
    return os.path.normpath(images / item.image_id)


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
        image_id, _, _, reason = broken[0]
        raise UserError(
            f"{len(broken)} of the {n_images} images of {folder} cannot be decoded, more than "
            f"{max_corrupt:.2%}; the first is {image_id} ({reason}). Replace or remove them, or "
            "raise split.max_corrupt of the dataset."
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
    images: Path, items: Sequence[Item], threads: int
) -> Iterator[tuple[Sequence[Item], list[Decoded]]]:
    """Items and what became of them, in order, BATCH at a time; decoded with all threads."""
    progress = Progress(len(items), "images")
    with Workers(
        look_at,
        threads,
        chunk=CHUNK,
        ahead=AHEAD * threads,
        name=str,
        threads_key="threads.index_images",
    ) as workers:
        results = workers.in_order(_path(images, item) for item in items)
        for start in range(0, len(items), BATCH):
            decoded = []
            for result in itertools.islice(results, BATCH):
                decoded.append(result)
                progress.add(1)
            yield items[start : start + BATCH], decoded
