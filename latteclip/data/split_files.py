"""Splits that a file lists: CoOp JSON, a table, or one list per split.

Each reader returns a Split, or raises one clear UserError. Letters: N images, C classes.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from latteclip.core.errors import UserError
from latteclip.data.folder_files import CLASSES

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split."""

    image_id: str  # path relative to the folder of images, or to a shard's in it
    split: str
    label: int | None  # None where it is not known
    member: str = ""  # its path in a shard, relative to the same folder; empty: a file of its own

    @property
    def path(self) -> str:
        """Where it lies, relative to the folder of images; see `latteclip.data.members`."""
        return self.member or self.image_id


@dataclass(frozen=True)
class Split:
    """N images and C class names as the dataset writes them, in label order."""

    items: list[Item]
    names: list[str]
    skipped: dict[str, int] = field(default_factory=dict)  # files that are no images, by suffix

    @property
    def needs_test_images(self) -> bool:
        """Whether a test split is called for: there is one, or every image has a label."""
        return all(item.label is not None for item in self.items) or any(
            item.split == "test" for item in self.items
        )

    def __post_init__(self) -> None:
        for name in self.names:
            if not (_is_name(name) and _is_utf8(name)):
                raise UserError(f"Class name {name!r} is not valid text; correct it.")


def read_coop(path: Path) -> Split:
    """A CoOp split JSON: {"train": [[path, label, classname], ...], "val": ..., "test": ...}.

    Raises:
        UserError: whatever keeps it from being a valid split, in one sentence.
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
            _same_name(names, label, name, path)
            items.append(Item(image_id, split, label))
    check_unique(items, path)
    return Split(items, _in_label_order(names, path))


def _coop_row(row: Any, split: str, path: Path) -> tuple[str, int, str]:
    match row:
        case [str(image_id), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
            return inside(image_id, path), label, name
    raise UserError(f"Split file {path}: {split} holds {row!r}, not [path, label, classname].")


def read_lists(paths: Mapping[str, Path], classes: Path, suffix: str) -> Split:
    """List files, one per split, of lines "<image> <class name>", and the class names in order.

    Args:
        paths: the list of each split.
        classes: class names, one per line.
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
            items.append(Item(inside(image + suffix, path), split, labels[name]))
    if not items:
        raise UserError(f"The lists {', '.join(map(str, paths.values()))} name no image.")
    check_unique(items, classes.parent)
    return Split(items, names)


def read_csv(path: Path, classes: Path | None, test_fraction: float) -> Split:
    """A table with the columns path, and any of label, classname, split; tabs in a .tsv.

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
            label = _number(row["label"], len(names))
            if label is None or (row["classname"] and row["classname"] != names[label]):
                raise UserError(f"{path}, line {number}: class {name!r} is not in {classes}.")
        image_id = inside(row["path"], path)
        split = row["split"].lower() or hashed_split(image_id, label, test_fraction)
        if split not in SPLITS:
            raise UserError(
                f"{path}, line {number}: split {row['split']!r} is not one of {', '.join(SPLITS)}."
            )
        items.append(Item(image_id, split, label))
    check_unique(items, path)
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
        raise UserError(f"Split file {path} is not valid CSV in UTF-8: {error}.") from None


def _csv_names(rows: Sequence[Mapping[str, str]], path: Path, classes: Path | None) -> list[str]:
    if classes is not None:
        return read_names(classes)
    numbered = dict[int, str]()
    for row in rows:
        if row["classname"] and row["label"]:
            label = _number(row["label"])
            if label is None:
                raise UserError(f"Split file {path}: label {row['label']!r} is not a number.")
            _same_name(numbered, label, row["classname"], path)
    if numbered:
        return _in_label_order(numbered, path)
    names = sorted({row["classname"] or row["label"] for row in rows} - {""})
    if not names or all(_number(name) is not None for name in names):
        raise UserError(
            f"Split file {path} has no class names: add a column classname, or a file {CLASSES} "
            "with one name per line."
        )
    return names


def _number(text: str, below: int | None = None) -> int | None:
    """A label as a number, or None."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        return None
    return int(text) if below is None or int(text) < below else None


def hashed_split(image_id: str, label: int | None, test_fraction: float) -> str:
    """The split, train or test, by a hash of the path; without a label an image tests nothing."""
    if label is None:
        return "train"
    return "test" if _place(image_id) < test_fraction else "train"


def _place(image_id: str) -> float:
    """Return a number below 1 that depends on a path alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64


def with_both_splits(items: list[Item]) -> list[Item]:
    """Return images split by a hash, one of them moved where the hash left train or test empty.

    That happens to a handful of images. The one whose hash is nearest to the other split moves.
    """
    labelled = [item for item in items if item.label is not None]
    splits = {item.split for item in items}
    if len(splits) > 1 or len(labelled) < 2:
        return items
    pick, other = (min, "test") if splits == {"train"} else (max, "train")
    moved = pick(labelled, key=lambda item: _place(item.image_id))
    return [replace(item, split=other) if item is moved else item for item in items]


def read_names(path: Path) -> list[str]:
    """Class names, one per line, in label order."""
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
        raise UserError(f"{path} is not valid UTF-8 text: {error}.") from None
    return (line.strip() for line in text.splitlines() if line.strip())


def inside(image_id: str, path: Path) -> str:
    """`image_id`, if it stays in the folder of images."""
    if not _is_utf8(image_id):
        raise UserError(f"{path}: the name {image_id!r} is not UTF-8; rename it.")
    parts = PurePosixPath(image_id)
    if not _is_name(image_id) or parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{path}: {image_id!r} is not a path inside the folder of images (split.images sets "
            "that folder)."
        )
    return image_id


def _is_name(value: str) -> bool:
    """Whether a file system could have it as the name of a file."""
    return bool(value) and "\0" not in value


def _is_utf8(value: str) -> bool:
    """Whether it can be written as UTF-8: bytes that were not are surrogates here."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


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


def check_unique(items: Sequence[Item], path: Path) -> None:
    """UserError where an image_id stands twice."""
    repeated = [i for i, n in Counter(item.image_id for item in items).items() if n > 1]
    if repeated:
        raise UserError(f"{path} lists {len(repeated)} images twice, the first {repeated[0]!r}.")
