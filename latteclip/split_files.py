"""The ways in which a dataset says which image is in which split and class.

Each reader takes what lies on the disk and returns a Split, or raises one clear UserError.
Letters: N images, C classes.
"""

import csv
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from latteclip.errors import UserError
from latteclip.prompts import clean_classname, clean_classnames

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
CLASSES = "classes.txt"
DEPTH = 3  # folders below a dataset's folder in which its parts are looked for


@dataclass(frozen=True)
class SplitSettings:
    """How a dataset's folder is read; all paths are relative to it."""

    kind: str  # coop, folders, csv or lists
    file: str | None = None  # of coop the JSON, of csv the table
    lists: dict[str, str] = field(default_factory=dict)  # of lists: the file of each split
    suffix: str = ""  # of lists: what turns a line's first word into a path
    classes: str | None = None  # class names, one a line; classes.txt counts if it is there
    images: str = "."  # the folder to which the split's paths are relative
    test_fraction: float = 0.3  # where the split does not say what is for testing
    classname_replace: dict[str, str] = field(default_factory=lambda: {"_": " "})
    counts: dict[str, int] = field(default_factory=dict)  # expected train (and val), test, classes
    max_corrupt: float = 0.01  # share of the images that may be dropped because they are broken


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split."""

    image_id: str  # path relative to the folder of images
    split: str
    label: int | None  # None where it is not known


@dataclass(frozen=True)
class Split:
    """N images and C class names as the dataset writes them, in label order."""

    items: list[Item]
    names: list[str]

    def __post_init__(self) -> None:
        for name in self.names:
            if not _is_text(name):
                raise UserError(f"Class name {name!r} is no text; correct it.")


def read_split(root: Path, settings: SplitSettings) -> tuple[Path, Split]:
    """Read a dataset's folder as its settings say.

    Returns:
        The folder of images, and the split.

    Raises:
        UserError: the split does not fit its form, the folder or the expected counts.
    """
    if not root.is_dir():
        raise UserError(f"Dataset folder {root} does not exist.")
    if settings.kind == "folders":
        images = root / settings.images
        if not images.is_dir():
            raise UserError(f"Folder of images {images} does not exist (split.images names it).")
        split = read_class_folders(
            images, _classes(root, settings), settings.test_fraction, settings.classname_replace
        )
    else:
        split = _read_listed(root, settings)
        images = _images_folder(root, settings.images, split.items)
    check_counts(split, settings.counts, root)
    return images, split


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
    return root / CLASSES if (root / CLASSES).is_file() else None


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
            level = (below for folder in here for below in _folders(folder))


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


def read_coop(path: Path) -> Split:
    """A CoOp split JSON: {"train": [[path, label, classname], ...], "val": ..., "test": ...}.

    Raises:
        UserError: anything that makes it no valid split, in one sentence.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"Split file {path} is no JSON: {error}.") from None
    if not isinstance(content, dict) or not {"train", "test"} <= set(content) <= set(SPLITS):
        raise UserError(f"Split file {path} must be an object with the keys train, test and val.")
    items, names = [], dict[int, str]()
    for split in SPLITS:
        rows = content.get(split, [])
        if not isinstance(rows, list):
            raise UserError(f"Split file {path}: {split} must be a list.")
        for row in rows:
            image_id, label, name = _coop_row(row, split, path)
            _same_name(names, label, name, path)
            items.append(Item(image_id, split, label))
    _check_unique(items, path)
    return Split(items, _in_label_order(names, path))


def _coop_row(row: Any, split: str, path: Path) -> tuple[str, int, str]:
    match row:
        case [str(image_id), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
            return _inside(image_id, path), label, name
    raise UserError(f"Split file {path}: {split} holds {row!r}, not [path, label, classname].")


def read_lists(paths: Mapping[str, Path], classes: Path, suffix: str) -> Split:
    """List files, one a split, of lines "<image> <class name>", and the class names in order.

    Args:
        paths: the list of each split.
        classes: class names, one a line.
        suffix: what turns an image's name into a path, such as ".jpg".
    """
    names = read_names(classes)
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for split, path in paths.items():
        for number, line in enumerate(_lines(path), start=1):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise UserError(f"{path}, line {number}: class {name!r} is not in {classes}.")
            items.append(Item(_inside(image + suffix, path), split, labels[name]))
    _check_unique(items, classes.parent)
    return Split(items, names)


def read_csv(path: Path, classes: Path | None, test_fraction: float) -> Split:
    """A table with the columns path, and any of label, classname, split; tabs in a .tsv.

    An image with neither label nor classname is unlabelled. A label is a number where there are
    class names (a column, or a file of them), else it is the class name itself. Without a split,
    a hash of the path decides.
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
            label = _number(row["label"], len(names))
            if label is None or (row["classname"] and row["classname"] != names[label]):
                raise UserError(f"{path}, line {number}: class {name!r} is not in {classes}.")
        image_id = _inside(row["path"], path)
        split = row["split"].lower() or hashed_split(image_id, test_fraction)
        if split not in SPLITS:
            raise UserError(
                f"{path}, line {number}: split {row['split']!r} is none of {', '.join(SPLITS)}."
            )
        items.append(Item(image_id, split, label))
    _check_unique(items, path)
    return Split(items, names)


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows with all four columns, "" where there is nothing."""
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
        raise UserError(f"Split file {path} is no CSV in UTF-8: {error}.") from None


def _csv_names(rows: Sequence[Mapping[str, str]], path: Path, classes: Path | None) -> list[str]:
    if classes is not None:
        return read_names(classes)
    numbered = dict[int, str]()
    for row in rows:
        if row["classname"] and row["label"]:
            label = _number(row["label"])
            if label is None:
                raise UserError(f"Split file {path}: label {row['label']!r} is no number.")
            _same_name(numbered, label, row["classname"], path)
    if numbered:
        return _in_label_order(numbered, path)
    names = sorted({row["classname"] or row["label"] for row in rows} - {""})
    if not names or all(_number(name) is not None for name in names):
        raise UserError(
            f"Split file {path} has no class names: add a column classname, or a file {CLASSES} "
            "with one name a line."
        )
    return names


def _number(text: str, below: int | None = None) -> int | None:
    """A label as a number, or None."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        return None
    return int(text) if below is None or int(text) < below else None


def read_class_folders(
    root: Path, classes: Path | None, test_fraction: float, replace: Mapping[str, str]
) -> Split:
    """Class folders: root/{train,val,test}/<class>/..., or root/<class>/... .

    Images that lie in no class folder are unlabelled. Without a test folder, an image belongs to
    the test split by a hash of its path: it stays there whatever else the folder holds.

    Args:
        root: the folder.
        classes: class names, one a line, in label order; folders of `root` are matched with them
            after clean-up. None: the folders name the classes, sorted.
        test_fraction: share of test images where there is no test folder.
        replace: how names are cleaned.
    """
    parts = [split for split in SPLITS if (root / split).is_dir()]
    if parts and not {"train", "test"} <= set(parts):
        raise UserError(f"{root} has a folder {parts[0]} but not both of train and test.")
    places = [(split, root / split) for split in parts] or [("", root)]
    names = read_names(classes) if classes else _folder_names(root, places)
    labels = {name: i for i, name in enumerate(clean_classnames(names, replace))}
    items = []
    for split, place in places:
        for label, file in _labelled_files(place, split, labels, replace, strict=classes is None):
            image_id = _inside(file.relative_to(root).as_posix(), root)
            items.append(Item(image_id, split or hashed_split(image_id, test_fraction), label))
    for split in ("train", "test"):
        if not any(item.split == split for item in items):
            raise UserError(f"{root} leaves no image for the {split} split.")
    unlabelled = Counter(item.split for item in items if item.label is None)
    if unlabelled:
        log.info("%s: unlabelled images lie outside class folders: %s.", root, dict(unlabelled))
    return Split(items, names)


def _folder_names(root: Path, places: Sequence[tuple[str, Path]]) -> list[str]:
    found = {split: {folder.name for folder in _folders(place)} for split, place in places}
    names = sorted(set().union(*found.values()))
    if not names:
        raise UserError(
            f"{root} holds no class folders; put each class's images in one, or write the class "
            f"names into {root / CLASSES}, one a line, if no image has a label."
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
    place: Path, split: str, labels: Mapping[str, int], replace: Mapping[str, str], *, strict: bool
) -> Iterator[tuple[int | None, Path]]:
    """Images of one split with their labels, None outside of class folders; sorted by path."""
    for file in _image_files(place, deep=False):
        yield None, file
    seen = dict[int, Path]()
    for folder in _folders(place):
        label = labels.get(clean_classname(folder.name, replace))
        if label is not None and seen.setdefault(label, folder) != folder:
            raise UserError(f"{seen[label]} and {folder} are the same class after clean-up.")
        files = _image_files(folder, deep=True)
        if label is None and split == "test" and files:
            raise UserError(f"Folder {folder} is no class of {CLASSES}; known are {list(labels)}.")
        if strict and not files and split in ("", "train"):
            raise UserError(
                f"Class folder {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); add "
                "some or remove the folder."
            )
        for file in files:
            yield label, file


def _folders(place: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones and what macOS leaves in archives."""
    return sorted(f for f in place.iterdir() if f.is_dir() and _is_seen(f.name))


def _is_seen(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _image_files(folder: Path, *, deep: bool) -> list[Path]:
    """Images in a folder, or in all below it as well, sorted by path."""
    found = []
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if _is_seen(name)] if deep else []
        found += [
            Path(place, name)
            for name in files
            if _is_seen(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def hashed_split(image_id: str, test_fraction: float) -> str:
    """The split, train or test, by a hash of the path."""
    place = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test_fraction else "train"


def read_names(path: Path) -> list[str]:
    """Class names, one a line, in label order."""
    names = list(_lines(path))
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise UserError(f"{path} lists the class {repeated[0]!r} twice.")
    return names


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file without the blanks around them and without empty ones."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}.") from None
    return (line.strip() for line in text.splitlines() if line.strip())


def _inside(image_id: str, path: Path) -> str:
    """`image_id`, if it stays in the folder of images."""
    parts = PurePosixPath(image_id)
    if not _is_text(image_id) or parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{path}: {image_id!r} is no path inside the folder of images (split.images sets that "
            "folder)."
        )
    return image_id


def _is_text(value: str) -> bool:
    """Whether it can be the name of a file and be written as UTF-8."""
    return bool(value) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _same_name(names: dict[int, str], label: int, name: str, path: Path) -> None:
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
