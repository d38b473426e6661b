"""Read a dataset's split: its images, where they are, and their labels.

A split is listed by a file (CoOp JSON, a table, or one list per split), or follows from class
folders or from shards (`shards`).
"""

import hashlib
import itertools
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from latteclip.config.keys import SplitSection
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError
from latteclip.core.files import (
    CLASSES,
    DISCOVER,
    FOLDERS,
    SPLITS,
    folders_in,
    from_json,
    lines_of,
)
from latteclip.core.terminal import counted, one_line
from latteclip.data import shards
from latteclip.data.images import IMAGE_SUFFIXES, image_exists, suffix_of, walk

log = logging.getLogger(__name__)
TEST_FRACTION = 0.3  # of labelled images, where nothing says which are for testing
DEPTH = 3  # folders below a dataset's folder in which its parts are searched
COLUMNS = ("path", "split", "label", "classname")  # columns of a table
UNLABELLED = (None, "", -1, "-1")  # `datasets` marks an unlabelled image by -1
# Split and class folder of an image, each of which it may lack.
_IN_FOLDERS = re.compile(
    r"(?:(train|val|test)(?:ing|id|idation)?/)?(?:([^/]+)/)?.+",
    re.DOTALL | re.IGNORECASE,
)
# The image of a line, up to its suffix, and the class name after it.
_LINE = re.compile(
    rf"(.+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))\s+(.+)", re.I
)
# Image, number and name of its class.
CoopRow = tuple[str, Annotated[int, Field(ge=0)], str]
CoopSplit = dict[Literal["train", "val", "test"], list[CoopRow]]
TableRow = tuple[str, str, str, str]  # COLUMNS, "" where unknown
# Image, split ("": a hash decides), label (a number, a class name or one of UNLABELLED), and path.
Row = tuple[str, str, Any, str]
Listing = tuple[list[str], Iterable[Row]]  # class names in label order, and images


class IndexSettings(SplitSection):
    """What a folder is read by."""

    class_names: str | None = None  # the key of the configuration


class Item(NamedTuple):
    """An image of a split."""

    image_id: str
    split: str
    label: int | None  # None where it is unknown
    # Relative to the folder of images, as `latteclip.data.images` reads it.
    path: str


class Split(NamedTuple):
    """Images, and class names as the dataset writes them, in label order."""

    folder: Path  # of the images
    items: list[Item]
    names: list[str]
    skipped: Counter[str]  # by suffix, files of class folders that are no images


def read_split(root: Path, settings: IndexSettings) -> Split:
    """Return the split of a dataset's folder.

    Raises UserError where the split does not fit its form, the folder or the expected counts.
    """
    files: list[str] = []
    if settings.kind == "folders":
        files = [name for name, _ in walk(root / settings.images)]
        names, rows = _read_class_folders(root, settings, files)
    elif settings.kind in shards.SUFFIXES:
        names, rows = _read_shards(root, settings)
    else:
        names, rows = _read_table(root, settings)
    items = _labelled(rows, names, root)
    _check(items, names, settings.counts, root)
    some = [item.path for item in items[:: len(items) // 2 or 1]]
    folder = _folder_with(root, settings.images, some)
    items = [item._replace(path=_on_disk(folder, item.path)) for item in items]
    return Split(folder, items, names, _skipped(files))


def _labelled(rows: Iterable[Row], names: Sequence[str], root: Path) -> list[Item]:
    """Return images with numbers as labels, and a hash decides splits that are not given."""
    label_of: dict[Any, int | None] = dict.fromkeys(UNLABELLED)
    for number in range(len(names)):
        label_of |= {number: number, str(number): number}
    # A class may be called by a number.
    label_of |= {name: number for number, name in enumerate(names)}
    items = []
    for image_id, split, value, path in rows:
        _check_inside(image_id, root)
        if isinstance(value, list | dict) or value not in label_of:
            raise UserError(
                f"{root}: {image_id} has the label {str(value)[:80]!r}, none of the {len(names)} "
                "classes; complete the class names, or correct the label."
            )
        label = label_of[value]
        if not split:
            hashed = hashlib.sha256(image_id.encode()).digest()[:8]
            # Depends on the path alone.
            drawn = int.from_bytes(hashed, "big") / 2**64
            split = (
                "test" if label is not None and drawn < TEST_FRACTION else "train"
            )
        items.append(Item(image_id, split, label, path))
    return items


def _check_inside(name: str, root: Path) -> None:
    """Raise UserError where a name in a list, shard or folder leads out of the folder of images."""
    leads_out = name.startswith("/") or ".." in name.split("/")
    is_utf8 = name.encode(errors="ignore").decode() == name
    if not name or leads_out or "\0" in name or not is_utf8:
        raise UserError(
            f"{root}: {name!r} is not a path in UTF-8 inside the folder of images (split.images "
            "sets that folder)."
        )


def _check(
    items: Sequence[Item],
    names: Sequence[str],
    counts: Mapping[Any, int],
    root: Path,
) -> None:
    """Raise UserError for no images, repeated images, or other numbers than the expected ones."""
    times = Counter(item.image_id for item in items)
    if not times:
        formats = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(
            f"The split of {root} lists no image; formats are {formats}."
        )
    [(image_id, n_times)] = times.most_common(1)
    if n_times > 1:
        raise UserError(
            f"The split of {root} lists images twice, such as {image_id!r}."
        )
    n_tests = sum(item.split == "test" for item in items)
    found = {"train": len(items) - n_tests, "test": n_tests, "classes": len(names)}
    if not counts.items() <= found.items():
        raise UserError(
            f"The split of {root} has {found}, where {dict(counts)} are expected; complete the "
            "folder, or correct split.counts of the dataset (train counts val as well)."
        )


def _spellings(path: str) -> list[str]:
    """Return a path, and the two ways of writing its accents: within letters, or after them."""
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return list(dict.fromkeys([path, *forms]))


def _on_disk(folder: Path, path: str) -> str:
    """Return the spelling of a path that is in the folder, the path itself if none is."""
    if path.isascii():
        return path
    there = (one for one in _spellings(path) if image_exists(folder / one))
    return next(there, path)


def _folder_with(root: Path, name: str | Path, wanted: Sequence[str]) -> Path:
    """Return `root/name`, or else the folder near the top of `root`, with one of the files."""
    wanted = [one for path in wanted for one in _spellings(path)]
    # Mirrors pack the same files under other top folders.
    deeper = (sorted(root.glob("*/" * depth)) for depth in range(1, DEPTH + 1))
    for folder in itertools.chain([root / name, root], *deeper):
        if any(image_exists(folder / file) for file in wanted):
            return folder
    raise UserError(
        f"{wanted[0]} is neither in {root / name} nor in the folders below {root}."
    )


def _existing(root: Path, name: str) -> Path:
    """Return `root/name`, or else a file with the last part of `name` near the top of `root`."""
    path = Path(name)
    return _folder_with(root, path.parent, [path.name]) / path.name


def _listed_classes(root: Path, settings: IndexSettings) -> list[str]:
    """Return the class names that a file lists, in label order, none where there is no file."""
    if settings.kind == "coop" or settings.class_names in (DISCOVER, FOLDERS):
        return []
    name = settings.class_list or CLASSES
    is_named = settings.class_list or settings.class_names
    if not is_named and not (root / name).is_file():
        return []
    return lines_of(_existing(root, name))


def _sorted_names(labels: Iterable[str], root: Path) -> list[str]:
    """Return the class names that labels are, sorted. UserError: all labels are numbers."""
    names = sorted({*labels} - {""})
    if names and all(name.removeprefix("-").isdecimal() for name in names):
        raise UserError(
            f"{root} has numbers as labels and no class names: list these in label order in "
            f"{CLASSES}, or, in a table, in a column classname."
        )
    return names


def _read_table(root: Path, settings: IndexSettings) -> Listing:
    """Read a CoOp split, a table, or lists. Labels name the classes if nothing else does."""
    table = list(TABLES[settings.kind](root, settings))
    names = _listed_classes(root, settings) or _table_names(table, root)
    return names, [
        (image, s, name or label, image) for image, s, label, name in table
    ]


def _coop_rows(root: Path, settings: IndexSettings) -> Iterator[TableRow]:
    """Yield the rows of {"train": [[path, label, classname], ...], "val": ..., "test": ...}."""
    path = _existing(root, settings.file or "split.json")
    content = from_json(CoopSplit, "\n".join(lines_of(path)), str(path))
    for split, images_of_split in content.items():
        for image, label, name in images_of_split:
            yield image, split, str(label), name


def _csv_rows(root: Path, settings: IndexSettings) -> Iterator[TableRow]:
    """Yield the rows of a table, which has the column path and perhaps others of COLUMNS."""
    # Here: other splits need no pandas.
    from latteclip.core.user_tables import read_table

    path = str(_existing(root, settings.file or "split.csv"))
    table = read_table(path, "Split file", ".csv")
    if not {"path"} <= set(table.columns) <= set(COLUMNS):
        raise UserError(
            f"Split file {path} has the columns {', '.join(table.columns)}; it needs path and may "
            f"have {', '.join(COLUMNS[1:])}: rename or remove the others."
        )
    table = table.reindex(columns=COLUMNS, fill_value="")
    for row in table.itertuples(index=False):
        image, split, label, name = map(str.strip, row)
        if split.lower() not in ("", *SPLITS):
            raise UserError(
                f"{path}: {image} is of the split {split!r}, none of {SPLITS}."
            )
        yield image, split.lower(), label, name


def _list_rows(root: Path, settings: IndexSettings) -> Iterator[TableRow]:
    """Yield the rows of one list per split, of lines "<image> <class name>".

    Images with a suffix may have spaces in their names.
    """
    for split, listed in settings.lists.items():
        for line in lines_of(_existing(root, listed)):
            image, _, name = line.partition(" ")
            match = _LINE.fullmatch(line)
            if match:
                image, name = match.groups()
            else:  # FGVC-Aircraft lists its images without their suffix
                image += "" if Path(image).suffix else ".jpg"
            yield image, split, "", name


TABLES = {"coop": _coop_rows, "csv": _csv_rows, "lists": _list_rows}


def _table_names(table: Sequence[TableRow], root: Path) -> list[str]:
    """Return class names by their numbers where a table has both, else sorted."""
    pairs = {(label, name) for _, _, label, name in table if label and name}
    if not pairs:
        return _sorted_names((name or label for _, _, label, name in table), root)
    name_of = dict(pairs)
    numbers = [str(number) for number in range(len(pairs))]
    if name_of.keys() != {*numbers}:
        raise UserError(
            f"{root}: labels must be numbers from 0, each with one class name."
        )
    return [name_of[number] for number in numbers]


def _skipped(files: Iterable[str]) -> Counter[str]:
    """Count the files that are no images, but classes.txt, by suffix."""
    suffixes = (
        suffix_of(name) for name in files if os.path.basename(name) != CLASSES
    )
    others = (suffix for suffix in suffixes if suffix not in IMAGE_SUFFIXES)
    return Counter(suffix if suffix.isascii() else "other" for suffix in others)


def _read_class_folders(
    root: Path, settings: IndexSettings, files: Iterable[str]
) -> Listing:
    """Read class folders: {train,val,test}/<class>/..., or <class>/... in the folder of images.

    A list of classes gives the names and their order. Folders match its names after clean-up.
    Images outside of class folders are unlabelled.
    """
    folder = root / settings.images
    found = _in_folders(
        name for name in files if suffix_of(name) in IMAGE_SUFFIXES
    )
    train = {name for split, name, _ in found if split == "train" and name}
    test = {name for split, name, _ in found if split == "test" and name}
    names = _listed_classes(root, settings)
    # Folders of test images say their classes by themselves.
    if settings.examples and not (settings.class_names or names or test):
        names = folders_in(settings.examples)
    elif not names and settings.class_names != DISCOVER:
        names = sorted({name for _, name, _ in found if name})
        if train and test and not train & test:
            raise UserError(
                f"{folder}: train has the folders {sorted(train)}, and test others; put unlabelled "
                f"images right into train, or list the classes in {CLASSES}."
            )

    def cleaned(name: str) -> str:
        return clean_classname(name, settings.classname_replace)

    label_of = {cleaned(name): label for label, name in enumerate(names)}
    labels = {name: label_of.get(cleaned(name)) for _, name, _ in found if name}
    others = sorted(name for name, label in labels.items() if label is None)
    for name in test.intersection(others):
        raise UserError(
            f"{folder / 'test' / name} is not a class of {names} ({CLASSES}, split.examples or "
            "class_names); rename or remove it, or move its images one folder up."
        )
    if 0 < len(others) < len(labels):
        n_images = Counter(name for _, name, _ in found)
        log.warning(
            "%s in folders that are no classes stay unlabelled: %s. Add them to %s, or rename.",
            counted(sum(n_images[name] for name in others), "image"),
            one_line(
                ", ".join(f"{name} ({n_images[name]:,})" for name in others), 500
            ),
            CLASSES,
        )
    return names, [
        (image, split, labels.get(name), image) for split, name, image in found
    ]


def _in_folders(files: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the split, class folder and image_id of each image, in this order.

    "" stands for images outside of class folders, and for all splits where no folder is one.
    """
    found = [
        (split.lower(), name, image)
        for image in files
        for split, name in _IN_FOLDERS.findall(image)
    ]
    named = {split for split, name, _ in found if name}
    if named == {""} and {split for split, _, _ in found} == {"", "train"}:
        # A class beside others, as of vehicles.
        found = [
            ("", name or os.path.dirname(image), image) for _, name, image in found
        ]
    in_splits = [row for row in found if row[0]]
    if in_splits and len(in_splits) < len(found):
        outside = next(image_id for split, _, image_id in found if not split)
        log.warning(
            "Images outside of train, val and test are left out, such as %s.",
            outside,
        )
    return sorted(
        in_splits or found, key=lambda row: (("", *SPLITS).index(row[0]), row[1])
    )


def _read_shards(root: Path, settings: IndexSettings) -> Listing:
    """Read all shards. They name the classes that no list names.

    An image of a tar has the name in it, after that of the shard where two shards have one name.
    """
    folder = root / settings.images
    rows: list[Row] = []
    described = set()
    split_of = shards.find_shards(folder, settings.kind, settings.lists)
    for shard, split in split_of.items():
        samples, classes = shards.read_shard(
            folder / shard, settings.kind, settings.label
        )
        described.add(classes)
        rows += [
            (name, split, label, f"{shard}#{place}")
            for name, place, label in samples
        ]
    if settings.label and all(row[2] is None for row in rows):
        raise UserError(
            f"No image in {folder} has split.label {settings.label}; correct it."
        )
    # Stable: others first, as in all forms.
    rows.sort(key=lambda row: row[1] == "test")
    names = _listed_classes(root, settings)
    if len(described) > 1 and not names:
        raise UserError(
            f"The shards in {folder} describe different classes: list the classes in label order "
            f"in {root / CLASSES}."
        )
    texts = (label for _, _, label, _ in rows if isinstance(label, str))
    names = names or [*described.pop()] or _sorted_names(texts, root)
    names_of_images = {name for name, *_ in rows}
    if settings.kind == "webdataset" and len(names_of_images) == len(rows):
        return names, rows
    return names, [
        (f"{path.rpartition('#')[0]}/{name}", split, label, path)
        for name, split, label, path in rows
    ]
