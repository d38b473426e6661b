"""Where a dataset's split and images lie in its folder, whichever form they have.

Letters: N images, C classes.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from latteclip.core.errors import UserError
from latteclip.core.paths import irregular, readable
from latteclip.data.class_folders import read_class_folders, subfolders
from latteclip.data.folder_files import CLASSES
from latteclip.data.shards import SUFFIXES, read_shards
from latteclip.data.split_files import Item, Split, read_coop, read_csv, read_lists

DEPTH = 3  # folders below a dataset's folder in which its parts are looked for


@dataclass(frozen=True)
class SplitSettings:
    """How a dataset's folder is read; all paths are relative to it."""

    kind: str = "folders"  # coop, folders, csv, lists, webdataset or parquet
    file: str | None = None  # of coop the JSON, of csv the table
    # Of lists the file of each split, of shards a glob that fits those of each split.
    lists: dict[str, str] = field(default_factory=dict)
    suffix: str = ""  # of lists: what turns a line's first word into a path
    classes: str | None = None  # class names, one per line; classes.txt counts if it is there
    images: str = "."  # the folder to which the split's paths are relative
    image: str | None = None  # of webdataset: the suffix of images, where samples have several
    label: str | None = None  # of shards: where labels are, see tar_shards and parquet_shards
    test_fraction: float = 0.3  # where the split does not say what is for testing
    classname_replace: dict[str, str] = field(default_factory=lambda: {"_": " "})
    counts: dict[str, int] = field(default_factory=dict)  # expected train (and val), test, classes
    max_corrupt: float = 0.01  # share of the images that may be dropped because they are broken
    limit: int | None = None  # images of each split that are drawn; None: all


def read_split(root: Path, settings: SplitSettings) -> tuple[Path, Split]:
    """Read a dataset's folder as its settings say.

    Returns:
        The folder of images, and the split.

    Raises:
        UserError: the split does not fit its form, the folder or the expected counts.
    """
    with readable():
        images, split = _read(root, settings)
    check_counts(split, settings.counts, root)
    return images, split


def drawn(split: Split, limit: int) -> Split:
    """Return at most so many images of each of train, val and test, evenly spread over its order.

    The order is that of class folders, lists or shards. No label is read.
    """
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(split.items):
        rows.setdefault(item.split, []).append(row)
    kept = {
        own[i * len(own) // count]
        for own in rows.values()
        for count in [min(limit, len(own))]
        for i in range(count)
    }
    return replace(split, items=[split.items[row] for row in sorted(kept)])


def _read(root: Path, settings: SplitSettings) -> tuple[Path, Split]:
    """`read_split` without the comparison of counts."""
    if not root.is_dir():
        raise UserError(f"Dataset folder {root} does not exist.")
    if settings.kind != "folders" and settings.kind not in SUFFIXES:
        split = _read_listed(root, settings)
        return _images_folder(root, settings.images, split.items), split
    images = root / settings.images
    if not images.is_dir():
        raise UserError(f"Folder of images {images} does not exist (split.images names it).")
    classes = _classes(root, settings)
    if settings.kind in SUFFIXES:
        return images, read_shards(
            images,
            settings.kind,
            lists=settings.lists,
            image=settings.image,
            label=settings.label,
            classes=classes,
            test_fraction=settings.test_fraction,
        )
    return images, read_class_folders(
        images, classes, settings.test_fraction, settings.classname_replace
    )


def _read_listed(root: Path, settings: SplitSettings) -> Split:
    """A split whose files list the images."""
    if settings.kind == "coop":
        return read_coop(_existing(root, settings.file or "split.json"))
    if settings.kind == "csv":
        return read_csv(
            _existing(root, settings.file or "split.csv"),
            _classes(root, settings),
            settings.test_fraction,
        )
    lists = {split: _existing(root, name) for split, name in settings.lists.items()}
    return read_lists(lists, _existing(root, settings.classes or CLASSES), settings.suffix)


def _classes(root: Path, settings: SplitSettings) -> Path | None:
    if settings.classes is not None:
        return _existing(root, settings.classes)
    path = root / CLASSES
    if not os.path.lexists(path):
        return None
    if kind := irregular(path):
        raise UserError(f"{path} is {kind} and no regular file; replace it, or remove it.")
    return path


def _existing(root: Path, name: str) -> Path:
    """`root/name`, or else a file with the last part of `name` near the top of `root`.

    Mirrors pack the same files under other top folders.
    """
    for folder in (root / Path(name).parent, *_nearby(root)):
        path = folder / Path(name).name
        if path.is_file():
            return path
    raise UserError(f"Split file {name} is neither in {root} nor in the folders below it.")


def _images_folder(root: Path, name: str, items: Sequence[Item]) -> Path:
    """`root/name`, or else the folder near the top of `root` that holds the split's images."""
    probes = [items[i].image_id for i in (0, len(items) // 2, -1)]
    for folder in (root / name, *_nearby(root)):
        if any((folder / probe).is_file() for probe in probes):
            return folder
    raise UserError(
        f"The images of the split, such as {probes[0]}, are neither in {root / name} nor in the "
        f"folders below {root}."
    )


def _nearby(root: Path) -> Iterator[Path]:
    """`root` and the folders below it, nearest first, down to DEPTH."""
    level: Iterable[Path] = [root]
    for depth in range(DEPTH + 1):
        here = list(level)
        yield from here
        if depth < DEPTH:
            level = (below for folder in here for below in subfolders(folder))


def check_counts(split: Split, counts: Mapping[str, int], root: Path) -> None:
    """Compare with the expected images of train (val included) and test, and classes.

    Raises:
        UserError: a number differs; shows both.
    """
    tests = sum(item.split == "test" for item in split.items)
    found = {"train": len(split.items) - tests, "test": tests, "classes": len(split.names)}
    wrong = [
        f"{found[what]} {what} where {wanted} are expected"
        for what, wanted in counts.items()
        if found[what] != wanted
    ]
    if wrong:
        raise UserError(
            f"The split of {root} has {' and '.join(wrong)}; complete the folder, or correct "
            "split.counts of the dataset (train counts val as well)."
        )
