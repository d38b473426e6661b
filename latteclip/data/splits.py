"""Read a dataset's split: which images it has, where they lie, and what their labels are.

A split is listed by a file (CoOp JSON, a table, or one list per split) or follows from class
folders or shards.

Letters: N images, C classes.
"""

import csv
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latteclip.core.class_templates import clean_classname, clean_classnames
from latteclip.core.errors import UserError
from latteclip.core.files import irregular, readable
from latteclip.data import shards
from latteclip.data.folder_files import (
    CLASSES,
    IMAGE_SUFFIXES,
    SPLITS,
    image_files,
    inside,
    is_name,
    is_utf8,
    subfolders,
)

log = logging.getLogger(__name__)
DEPTH = 3  # folders below a dataset's folder in which its parts are searched


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split."""

    image_id: str  # path relative to the folder of images, or to a shard in it
    split: str
    label: int | None  # None where it is unknown
    member: str = ""  # its path in a shard, relative to the same folder; empty: a separate file

    @property
    def path(self) -> str:
        """Its path relative to the folder of images; see `latteclip.data.images`."""
        return self.member or self.image_id


@dataclass(frozen=True)
class Split:
    """N images and C class names as the dataset writes them, in label order."""

    items: list[Item]
    names: list[str]
    skipped: dict[str, int] = field(default_factory=dict)  # files that are no images, by suffix

    @property
    def needs_test_images(self) -> bool:
        """Whether a test split is expected: there is one, or every image has a label."""
        return all(item.label is not None for item in self.items) or any(
            item.split == "test" for item in self.items
        )

    def __post_init__(self) -> None:
        for name in self.names:
            if not (is_name(name) and is_utf8(name)):
                raise UserError(f"Class name {name!r} is not valid text; correct it.")


@dataclass(frozen=True)
class SplitSettings:
    """How a dataset's folder is read. All paths are relative to it."""

    kind: str = "folders"  # coop, folders, csv, lists, webdataset or parquet
    file: str | None = None  # of coop the JSON, of csv the table
    # Of lists the file of each split, of shards a glob that fits those of each split.
    lists: dict[str, str] = field(default_factory=dict)
    suffix: str = ""  # of lists: turns a line's first word into a path
    classes: str | None = None  # class names, one per line; classes.txt counts if it exists
    images: str = "."  # the folder to which the split's paths are relative
    image: str | None = None  # of webdataset: the suffix of images, where samples have several
    label: str | None = None  # of shards: where labels are, see `shards`
    test_fraction: float = 0.3  # where the split does not name the images for testing
    classname_replace: dict[str, str] = field(default_factory=lambda: {"_": " "})
    counts: dict[str, int] = field(default_factory=dict)  # expected train (and val), test, classes
    max_corrupt: float = 0.01  # share of the images that may be dropped because they are broken
    limit: int | None = None  # images of each split that are drawn; None: all


def read_split(root: Path, settings: SplitSettings) -> tuple[Path, Split]:
    """Read a dataset's folder by its settings.

    Returns:
        The folder of images, and the split.

    Raises:
        UserError: the split does not fit its form, the folder or the expected counts.
    """
    with readable():
        images, split = _read(root, settings)
    check_counts(split, settings.counts, root)
    return images, split


def draw(split: Split, limit: int) -> Split:
    """Return at most `limit` images of each of train, val and test, evenly spread over its order.

    The order is that of class folders, lists or shards. No label is read.
    """
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(split.items):
        rows.setdefault(item.split, []).append(row)
    drawn = {
        of_split[i * len(of_split) // count]
        for of_split in rows.values()
        for count in [min(limit, len(of_split))]
        for i in range(count)
    }
    return replace(split, items=[split.items[row] for row in sorted(drawn)])


def check_counts(split: Split, counts: Mapping[str, int], root: Path) -> None:
    """Raise UserError where the images of train (val included), test, or classes differ in number.

    Args:
        split: as it was read.
        counts: expected numbers by name.
        root: the dataset's folder, for the message.
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


def _read(root: Path, settings: SplitSettings) -> tuple[Path, Split]:
    if not root.is_dir():
        raise UserError(f"Dataset folder {root} does not exist.")
    if settings.kind != "folders" and settings.kind not in shards.SUFFIXES:
        split = _read_listed(root, settings)
        return _images_folder(root, settings.images, split.items), split
    images = root / settings.images
    if not images.is_dir():
        raise UserError(f"Folder of images {images} does not exist (split.images names it).")
    classes = _classes(root, settings)
    if settings.kind in shards.SUFFIXES:
        return images, _read_shards(images, settings, classes)
    return images, _read_class_folders(
        images, classes, settings.test_fraction, settings.classname_replace
    )


def _read_listed(root: Path, settings: SplitSettings) -> Split:
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
    """Return the file of class names, None where there is none."""
    if settings.classes is not None:
        return _existing(root, settings.classes)
    path = root / CLASSES
    if not os.path.lexists(path):
        return None
    if kind := irregular(path):
        raise UserError(f"{path} is {kind} and no regular file; replace it, or remove it.")
    return path


def _existing(root: Path, name: str) -> Path:
    """Return `root/name`, or else a file with the last part of `name` near the top of `root`.

    Mirrors pack the same files under other top folders.
    """
    for folder in (root / Path(name).parent, *_nearby(root)):
        path = folder / Path(name).name
        if path.is_file():
            return path
    raise UserError(f"Split file {name} is neither in {root} nor in the folders below it.")


def _images_folder(root: Path, name: str, items: Sequence[Item]) -> Path:
    """Return `root/name`, or else the folder near the top of `root` that holds the images."""
    probes = [items[i].image_id for i in (0, len(items) // 2, -1)]
    for folder in (root / name, *_nearby(root)):
        if any((folder / probe).is_file() for probe in probes):
            return folder
    raise UserError(
        f"The images of the split, such as {probes[0]}, are neither in {root / name} nor in the "
        f"folders below {root}."
    )


def _nearby(root: Path) -> Iterator[Path]:
    """Yield `root` and the folders below it, nearest first, down to DEPTH."""
    level: Iterable[Path] = [root]
    for depth in range(DEPTH + 1):
        here = list(level)
        yield from here
        if depth < DEPTH:
            level = (below for folder in here for below in subfolders(folder))


# --- files that list the images ------------------------------------------------------------------


def read_coop(path: Path) -> Split:
    """Read a CoOp split: {"train": [[path, label, classname], ...], "val": ..., "test": ...}.

    Raises:
        UserError: it is not a valid split.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"Split file {path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict) or not {"train", "test"} <= set(content) <= set(SPLITS):
        raise UserError(f"Split file {path} must be an object with the keys train, test and val.")
    items, names = [], dict[int, str]()
    for split in SPLITS:
        rows = content.get(split, [])
        if not isinstance(rows, list):
            raise UserError(f"Split file {path}: {split} must be a list.")
        for row in rows:
            image_id, label, name = _coop_row(row, split, path)
            _check_same_name(names, label, name, path)
            items.append(Item(image_id, split, label))
    _check_unique(items, path)
    return Split(items, _in_label_order(names, path))


def _coop_row(row: Any, split: str, path: Path) -> tuple[str, int, str]:
    match row:
        case [str(image_id), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
            return inside(image_id, path), label, name
    raise UserError(f"Split file {path}: {split} holds {row!r}, not [path, label, classname].")


def read_lists(paths: Mapping[str, Path], classes: Path, suffix: str) -> Split:
    """Read one list per split, of lines "<image> <class name>".

    Args:
        paths: the list of each split.
        classes: class names, one per line, in label order.
        suffix: turns an image's name into a path, such as ".jpg".
    """
    names = _read_names(classes)
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for split, path in paths.items():
        for number, line in enumerate(_lines(path), start=1):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise UserError(f"{path}, line {number}: class {name!r} is not in {classes}.")
            items.append(Item(inside(image + suffix, path), split, labels[name]))
    if not items:
        raise UserError(f"The lists {', '.join(map(str, paths.values()))} name no image.")
    _check_unique(items, classes.parent)
    return Split(items, names)


def read_csv(path: Path, classes: Path | None, test_fraction: float) -> Split:
    """Read a table with the columns path, and any of label, classname, split; tabs in a .tsv.

    An image with neither label nor classname is unlabelled. A label is a number where there are
    class names (a column, or a file of them), else it is the class name itself. Without a split,
    a hash of the path decides, and an unlabelled image is for training.
    """
    rows = list(_csv_rows(path))
    if not rows:
        raise UserError(f"Split file {path} lists no image.")
    names = _csv_names(rows, path, classes)
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for number, row in enumerate(rows, start=2):
        name = row["classname"] or row["label"]
        label = labels.get(name) if name else None
        if name and label is None:
            label = _parse_label(row["label"], len(names))
            if label is None or (row["classname"] and row["classname"] != names[label]):
                raise UserError(f"{path}, line {number}: class {name!r} is not in {classes}.")
        image_id = inside(row["path"], path)
        split = row["split"].lower() or _hashed_split(image_id, label, test_fraction)
        if split not in SPLITS:
            raise UserError(
                f"{path}, line {number}: split {row['split']!r} is not one of {', '.join(SPLITS)}."
            )
        items.append(Item(image_id, split, label))
    _check_unique(items, path)
    return Split(items, names)


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield rows with all four columns, "" where a cell is empty."""
    known = ("path", "label", "classname", "split")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            header = [name.strip().lower() for name in reader.fieldnames or []]
            if "path" not in header or not set(header) <= set(known):
                raise UserError(
                    f"Split file {path} must begin with the column names path and any of label, "
                    f"classname, split; it begins with {','.join(header)!r}."
                )
            reader.fieldnames = header
            for row in reader:
                if None in row:
                    raise UserError(f"{path}, line {reader.line_num}: more fields than columns.")
                yield {name: (row.get(name) or "").strip() for name in known}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Split file {path} is not valid CSV in UTF-8: {error}.") from None


def _csv_names(rows: Sequence[Mapping[str, str]], path: Path, classes: Path | None) -> list[str]:
    if classes is not None:
        return _read_names(classes)
    numbered = dict[int, str]()
    for row in rows:
        if row["classname"] and row["label"]:
            label = _parse_label(row["label"])
            if label is None:
                raise UserError(f"Split file {path}: label {row['label']!r} is not a number.")
            _check_same_name(numbered, label, row["classname"], path)
    if numbered:
        return _in_label_order(numbered, path)
    names = sorted({row["classname"] or row["label"] for row in rows} - {""})
    if not names or all(_parse_label(name) is not None for name in names):
        raise UserError(
            f"Split file {path} has no class names: add a column classname, or a file {CLASSES} "
            "with one name per line."
        )
    return names


def _parse_label(text: str, below: int | None = None) -> int | None:
    """Return a label as a number, None for any other text."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        return None
    return int(text) if below is None or int(text) < below else None


def _read_names(path: Path) -> list[str]:
    """Read class names, one per line, in label order."""
    names = list(_lines(path))
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise UserError(f"{path} lists the class {repeated[0]!r} twice.")
    return names


def _lines(path: Path) -> Iterator[str]:
    """Read the lines of a text file that are not empty, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8 text: {error}.") from None
    return (line.strip() for line in text.splitlines() if line.strip())


def _check_same_name(names: dict[int, str], label: int, name: str, path: Path) -> None:
    if names.setdefault(label, name) != name:
        raise UserError(f"Split file {path}: label {label} is both {names[label]!r} and {name!r}.")


def _in_label_order(names: Mapping[int, str], path: Path) -> list[str]:
    if not names:
        raise UserError(f"Split file {path} lists no image.")
    if max(names) != len(names) - 1:
        missing = next(label for label in range(max(names)) if label not in names)
        raise UserError(
            f"Split file {path}: labels must run from 0 without a gap, but {missing} is missing."
        )
    return [names[label] for label in range(len(names))]


def _check_unique(items: Sequence[Item], path: Path) -> None:
    repeated = [i for i, n in Counter(item.image_id for item in items).items() if n > 1]
    if repeated:
        raise UserError(f"{path} lists {len(repeated)} images twice, the first {repeated[0]!r}.")


# --- a split by hash -----------------------------------------------------------------------------


def _hashed_split(image_id: str, label: int | None, test_fraction: float) -> str:
    """Draw train or test by a hash of the path. An unlabelled image is for training."""
    if label is None:
        return "train"
    return "test" if _unit_interval(image_id) < test_fraction else "train"


def _unit_interval(image_id: str) -> float:
    """Return a number from 0 to 1 that depends on a path alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64


def _with_both_splits(items: list[Item]) -> list[Item]:
    """Move one image where the hash left train or test empty, which happens to a handful of images.

    The image whose hash is nearest to the other split moves.
    """
    labelled = [item for item in items if item.label is not None]
    splits = {item.split for item in items}
    if len(splits) > 1 or len(labelled) < 2:
        return items
    pick, other = (min, "test") if splits == {"train"} else (max, "train")
    moved = pick(labelled, key=lambda item: _unit_interval(item.image_id))
    return [replace(item, split=other) if item is moved else item for item in items]


# --- class folders -------------------------------------------------------------------------------


def _read_class_folders(
    root: Path, classes: Path | None, test_fraction: float, replacements: Mapping[str, str]
) -> Split:
    """Read class folders: root/{train,val,test}/<class>/..., or root/<class>/... .

    Images outside of class folders are unlabelled. Without a test folder, a hash of its path puts a
    labelled image into the test split, whatever else the folder holds, and all others are for
    training. Where that leaves a split empty, one image moves. Other files are counted.

    Args:
        root: the folder.
        classes: class names, one per line, in label order. Folders of `root` are matched with them
            after clean-up. None: the folders name the classes, sorted.
        test_fraction: share of test images where there is no test folder.
        replacements: how names are cleaned.
    """
    parts = [split for split in SPLITS if (root / split).is_dir()]
    if parts and not {"train", "test"} <= set(parts):
        raise UserError(f"{root} has a folder {parts[0]} but not both of train and test.")
    places = [(split, root / split) for split in parts] or [("", root)]
    names = _read_names(classes) if classes else _folder_names(root, places)
    labels = {name: i for i, name in enumerate(clean_classnames(names, replacements))}
    items, skipped = [], Counter[str]()
    for split, place in places:
        files = _labelled_files(place, split, labels, replacements, skipped, strict=classes is None)
        for label, file in files:
            image_id = inside(file.relative_to(root).as_posix(), root)
            items.append(
                Item(image_id, split or _hashed_split(image_id, label, test_fraction), label)
            )
    if not parts and all(item.label is not None for item in items):
        items = _with_both_splits(items)
    found = Split(items, names, dict(skipped.most_common()))
    for split in ("train", "test") if parts or found.needs_test_images else ("train",):
        if not any(item.split == split for item in items):
            raise UserError(f"{root} leaves no image for the {split} split.")
    unlabelled = Counter(item.split for item in items if item.label is None)
    if unlabelled:
        log.info("%s: unlabelled images lie outside class folders: %s.", root, dict(unlabelled))
    return found


def _folder_names(root: Path, places: Sequence[tuple[str, Path]]) -> list[str]:
    found = {split: {folder.name for folder in subfolders(place)} for split, place in places}
    names = sorted(set().union(*found.values()))
    if not names:
        raise UserError(
            f"{root} holds no class folders; put each class's images in one, or write the class "
            f"names into {root / CLASSES}, one per line, if no image has a label."
        )
    train, test = found.get("train", set()), found.get("test", set())
    if train and test and not train & test:
        raise UserError(
            f"{root}: the folders of train {sorted(train)} and of test {sorted(test)} have no "
            f"class in common; put unlabelled images right into train, or write the class names "
            f"into {root / CLASSES}."
        )
    return names


def _labelled_files(
    place: Path,
    split: str,
    labels: Mapping[str, int],
    replacements: Mapping[str, str],
    skipped: Counter[str],
    *,
    strict: bool,
) -> Iterator[tuple[int | None, Path]]:
    """Yield the images of one split with their labels, None outside of class folders, by path.

    Other files are counted in `skipped`.
    """
    for file in image_files(place, skipped, deep=False):
        yield None, file
    seen = dict[int, Path]()
    for folder in subfolders(place):
        label = labels.get(clean_classname(folder.name, replacements))
        if label is not None and seen.setdefault(label, folder) != folder:
            raise UserError(f"{seen[label]} and {folder} are the same class after clean-up.")
        files = image_files(folder, skipped, deep=True)
        if label is None and split == "test" and files:
            raise UserError(
                f"Folder {folder} is not a class of {CLASSES}, which names {list(labels)}."
            )
        if strict and not files and split in ("", "train"):
            raise UserError(
                f"Class folder {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); add "
                "some or remove the folder."
            )
        for file in files:
            yield label, file


# --- shards --------------------------------------------------------------------------------------


def _read_shards(root: Path, settings: SplitSettings, classes: Path | None) -> Split:
    """Read the images of all shards, in the order of the shards' paths.

    Where no name of a shard tells its split, a hash of the image_id puts a labelled image into the
    test split, and all others are for training.

    Args:
        root: the folder of the shards.
        settings: of the dataset.
        classes: class names, one per line, in label order. None: the shards name their classes.
    """
    found = shards.find_shards(root, settings.kind, settings.lists)
    skipped = Counter[str]()
    rows: list[tuple[str, str, str, shards.Label]] = []
    for shard, split in found:
        name = inside(shard.relative_to(root).as_posix(), root)
        samples = (
            shards.tar_samples(shard, settings.image, settings.label, skipped)
            if settings.kind == "webdataset"
            else shards.parquet_samples(shard, settings.label)
        )
        for sample in samples:
            label = sys.intern(sample.label) if isinstance(sample.label, str) else sample.label
            rows.append((f"{name}/{sample.name}", f"{name}#{sample.place}", split, label))
    if classes:
        names = _read_names(classes)
    else:
        described = (
            shards.parquet_classnames([shard for shard, _ in found], settings.label)
            if settings.kind == "parquet"
            else None
        )
        names = described or _names_of_labels((label for *_, label in rows), root)
    labels = {name: number for number, name in enumerate(names)}
    items = []
    for image_id, place, split, value in rows:
        number = _number_of_label(value, labels, image_id)
        own_split = split or _hashed_split(image_id, number, settings.test_fraction)
        items.append(Item(image_id, own_split, number, place))
    _check_unique(items, root)
    return Split(items, names, dict(skipped.most_common()))


def _names_of_labels(labels: Iterable[shards.Label], root: Path) -> list[str]:
    """Return the class names among labels, sorted."""
    names = sorted({label for label in labels if isinstance(label, str)})
    if not names:
        raise UserError(
            f"The shards in {root} do not name their classes: write the class names into "
            f"{root / CLASSES}, one per line in label order, or say with split.label where labels "
            "are."
        )
    return names


def _number_of_label(value: shards.Label, labels: Mapping[str, int], image_id: str) -> int | None:
    if value is None:
        return None
    number = labels.get(value) if isinstance(value, str) else value
    if number is None or not 0 <= number < len(labels):
        raise UserError(
            f"{image_id} has the label {str(value)[:80]!r}, which is none of the {len(labels)} "
            "classes; complete the class names, or correct split.label."
        )
    return number
