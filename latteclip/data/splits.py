"""Read a dataset's split: its images, where they are, and their labels.

A split is listed by a file (CoOp JSON, a table, or one list per split), or follows from class
folders or from shards (`shards`).
"""

import glob
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from latteclip.config.keys import IndexSettings
from latteclip.core.class_templates import clean_classname, clean_classnames
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import (
    CLASSES,
    DISCOVER,
    FOLDERS,
    SPLITS,
    folders_in,
    from_json,
    lines_of,
)
from latteclip.data import folder_files, images, shards
from latteclip.data.folder_files import IMAGE_SUFFIXES, class_names, inside

TEST_FRACTION = 0.3  # of labelled images, where nothing says which are for testing
DEPTH = 3  # folders below a dataset's folder in which its parts are searched
COLUMNS = ("path", "split", "label", "classname")  # columns of a table
UNLABELLED = (None, "", -1)  # `datasets` marks an unlabelled image by the last
# The word of a shard's path that names its split, such as train or validation.
_WORD = re.compile(r"(?<![a-z0-9])(train|val|test|dev)(ing|id|idation)?(?=[^a-z]|$)")
# The image of a line, up to its suffix, and the class name after it.
_LINE = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))\s+(.+)", re.I)
# Image, number and name of its class.
CoopRow = tuple[str, Annotated[int, Field(ge=0)], str]
CoopSplit = dict[Literal["train", "val", "test"], list[CoopRow]]
TableRow = tuple[str, str, str, str]  # COLUMNS, "" where unknown
# Image, split ("": a hash decides), label (a number, a class name or one of UNLABELLED), and path.
Row = tuple[str, str, Any, str]
Listing = tuple[list[str], Iterable[Row]]  # class names in label order, and images


class Item(NamedTuple):
    """An image of a split."""

    image_id: str
    split: str
    label: int | None  # None where it is unknown
    path: str  # relative to the folder of images, as `latteclip.data.images` reads it


@dataclass(frozen=True)
class Split:
    """Images, and class names as the dataset writes them, in label order."""

    items: list[Item]
    names: list[str]
    skipped: dict[str, int]  # files that are no images, by suffix


def read_split(root: Path, settings: IndexSettings) -> tuple[Path, Split]:
    """Return the folder of images and the split of a dataset's folder.

    Raises UserError where the split does not fit its form, the folder or the expected counts.
    """
    if not root.is_dir():
        raise UserError(f"Dataset folder {root} does not exist.")
    skipped = Counter[str]()
    if settings.kind == "folders":
        names, rows = _read_class_folders(root, settings, skipped)
    elif settings.kind in shards.SUFFIXES:
        names, rows = _read_shards(root, settings)
    else:
        names, rows = _read_table(root, settings)
    items = _labelled(rows, names, root)
    split = Split(items, names, dict(skipped.most_common()))
    _check(split, settings.counts, root)
    probes = (items[0], items[len(items) // 2], items[-1])
    return _folder_with(root, settings.images, [item.path for item in probes]), split


def _labelled(rows: Iterable[Row], names: Sequence[str], root: Path) -> list[Item]:
    """Return images with numbers as labels, and a hash decides splits that are not given."""
    numbers = {name: number for number, name in enumerate(names)}
    items = []
    for image_id, split, value, path in rows:
        inside(image_id, root)
        label = _number(value)
        if isinstance(value, str):  # a class may be called by a number
            label = numbers.get(value, label)
        if label in UNLABELLED:
            label = None
        elif type(label) is not int or not 0 <= label < len(names):
            raise UserError(
                f"{root}: {image_id} has the label {str(value)[:80]!r}, none of the {len(names)} "
                "classes; complete the class names, or correct the label."
            )
        if not split:
            hashed = hashlib.sha256(image_id.encode()).digest()[:8]
            drawn = int.from_bytes(hashed, "big") / 2**64  # depends on the path alone
            split = "test" if label is not None and drawn < TEST_FRACTION else "train"
        items.append(Item(image_id, split, label, path))
    return items


def _number(label: Any) -> Any:
    """Return the number that a text is, or else the label."""
    digits = str(label).removeprefix("-")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= 18
    return int(label) if isinstance(label, str) and is_number else label


def _check(split: Split, counts: Mapping[Any, int], root: Path) -> None:
    """Raise UserError for no images, repeated images, or other numbers than the expected ones."""
    times = Counter(item.image_id for item in split.items)
    if not times:
        raise UserError(f"The split of {root} lists no image.")
    [(image_id, n_times)] = times.most_common(1)
    if n_times > 1:
        raise UserError(f"The split of {root} lists images twice, such as {image_id!r}.")
    tests = sum(item.split == "test" for item in split.items)
    numbers = {"train": len(times) - tests, "test": tests, "classes": len(split.names)}
    if not counts.items() <= numbers.items():
        raise UserError(
            f"The split of {root} has {numbers}, where {dict(counts)} are expected; complete the "
            "folder, or correct split.counts of the dataset (train counts val as well)."
        )


def _folder_with(root: Path, name: str | Path, wanted: Sequence[str]) -> Path:
    """Return `root/name`, or else the folder near the top of `root`, with one of the files."""
    # Mirrors pack the same files under other top folders.
    deeper = (sorted(root.glob("*/" * depth)) for depth in range(1, DEPTH + 1))
    for folder in itertools.chain([root / name, root], *deeper):
        if any(images.image_exists(folder / file) for file in wanted):
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
    return lines_of(_existing(root, name)) if is_named or (root / name).is_file() else []


def _read_table(root: Path, settings: IndexSettings) -> Listing:
    """Read a CoOp split, a table, or lists. Labels name the classes if nothing else does."""
    table = list(TABLES[settings.kind](root, settings))
    names = _listed_classes(root, settings) or _table_names(table, root)
    return names, [(image, s, name or label, image) for image, s, label, name in table]


def _coop_rows(root: Path, settings: IndexSettings) -> Iterator[TableRow]:
    """Yield the rows of {"train": [[path, label, classname], ...], "val": ..., "test": ...}."""
    path = _existing(root, settings.file or "split.json")
    content = from_json(CoopSplit, "\n".join(lines_of(path)), str(path))
    for split, images_of_split in content.items():
        for image, label, name in images_of_split:
            yield image, split, str(label), name


def _csv_rows(root: Path, settings: IndexSettings) -> Iterator[TableRow]:
    """Yield the rows of a table, which has the column path and perhaps others of COLUMNS."""
    from latteclip.core.user_tables import read_table  # here: other splits need no pandas

    path = str(_existing(root, settings.file or "split.csv"))
    table = read_table(path, "Split file", ".csv")
    table.columns = table.columns.str.strip().str.lower()
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
                f"{path}: {image} is of the split {split!r}, none of {', '.join(SPLITS)}."
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
    named = [(label, name) for _, _, label, name in table if label and name]
    pairs = {(_number(label), name) for label, name in named}
    if {number for number, _ in pairs} != set(range(len(pairs))):
        raise UserError(f"{root}: labels must be numbers from 0, each with one class name.")
    if pairs:
        return [name for _, name in sorted(pairs)]
    names = sorted({name or label for _, _, label, name in table} - {""})
    if names and all(isinstance(_number(name), int) for name in names):
        raise UserError(
            f"{root} has no class names: add a column classname, or a file {CLASSES}."
        )
    return names


def _read_class_folders(
    root: Path, settings: IndexSettings, skipped: Counter[str]
) -> Listing:
    """Read class folders: {train,val,test}/<class>/..., or <class>/... in the folder of images.

    A list of classes gives the names and their order. Folders match its names after clean-up.
    Images outside of class folders are unlabelled.
    """
    folder = root / settings.images
    places = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    places = places or {"": folder}
    folders = {split: folders_in(place) for split, place in places.items()}
    listed = _listed_classes(root, settings)
    # Folders of test images say their classes by themselves.
    if settings.examples and not (settings.class_names or listed or folders.get("test")):
        listed = class_names(settings.examples)
    names = listed
    if not listed and settings.class_names != DISCOVER:
        names = sorted({*itertools.chain(*folders.values())})
        train, test = (set(folders.get(split, ())) for split in ("train", "test"))
        if train and test and not train & test:
            raise UserError(
                f"{folder}: train has the folders {sorted(train)}, and test others; put unlabelled "
                f"images right into train, or list the classes in {CLASSES}."
            )
    cleaned = clean_classnames(names, settings.classname_replace) if names else []
    name_of = dict(zip(cleaned, names, strict=True))

    def rows_of(split: str, name: str) -> Iterator[Row]:
        place = places[split] / name
        files = folder_files.image_files(place, skipped, deep=bool(name))
        label = name_of.get(clean_classname(name, settings.classname_replace))
        if name and split == "test" and files and label is None:
            raise UserError(
                f"{place} is not a class of {names} ({CLASSES}, split.examples or class_names); "
                "rename or remove it, or move its images one folder up."
            )
        if name and split != "test" and not files and not listed:
            raise UserError(
                f"Class folder {place} holds no image; add some or remove the folder."
            )
        for file in files:
            image_id = file.relative_to(folder).as_posix()
            yield image_id, split, label, image_id

    every = [rows_of(split, name) for split in places for name in ("", *folders[split])]
    return names, itertools.chain.from_iterable(every)


def _read_shards(root: Path, settings: IndexSettings) -> Listing:
    """Read all shards. They name the classes that no list names.

    An image of a tar has the name in it, after that of the shard where two shards have one name.
    """
    folder = root / settings.images
    found: list[Row] = []
    described = set()
    for shard, split in _split_of_shards(folder, settings).items():
        path = folder / shard
        try:
            for name, place, label in shards.SAMPLES[settings.kind](path, settings.label):
                found.append((name, split, label, f"{shard}#{place}"))
            described.add(shards.described_classes(path, settings.label))
        except UserError:
            raise
        except Exception as error:  # tarfile raises errors of many kinds on damaged headers
            raise UserError(
                f"{path} is neither a complete tar without compression nor a Parquet file of "
                f"images as `datasets` writes it ({first_line(error)}); download or write it again."
            ) from None
    found.sort(key=lambda row: row[1] == "test")  # stable: others first, as in all forms
    names = _listed_classes(root, settings)
    if not names and len(described) < 2:
        labels = {label for _, _, label, _ in found if isinstance(_number(label), str)}
        names = [*itertools.chain(*described)] or sorted(labels - {""})
    if not names:
        raise UserError(
            f"The shards in {folder} name no classes, or differ in them: list the classes in label "
            f"order in {root / CLASSES}, or set split.label to where labels are."
        )
    if settings.kind == "webdataset" and len({row[0] for row in found}) == len(found):
        return names, found
    return names, [(f"{row[3].rpartition('#')[0]}/{row[0]}", *row[1:]) for row in found]


def _split_of_shards(folder: Path, settings: IndexSettings) -> dict[str, str]:
    """Return the split of each shard by globs, or by a word of its path, "" where it has none."""
    suffix = shards.SUFFIXES[settings.kind]
    split_of = dict[str, str]()
    for listed, pattern in settings.lists.items():
        fitting = glob.glob(pattern, root_dir=folder, recursive=True)
        if not fitting:
            raise UserError(f"No shard in {folder} fits {pattern!r}, split.lists.{listed}.")
        split_of |= dict.fromkeys(sorted(fitting), listed)
    if split_of:
        return split_of
    for name in sorted(name for name, _ in folder_files.files(str(folder), settings.kind)):
        if name.lower().endswith(suffix):
            words = _WORD.findall(name.lower())
            split = words[-1][0] if words else ""
            split_of[name] = "val" if split == "dev" else split
    splits = set(split_of.values())
    if not splits:
        raise UserError(f"{folder} holds no *{suffix}; split.images names their folder.")
    if "" in splits and len(splits) > 1:
        examples = {split or "none": name for name, split in split_of.items()}
        raise UserError(
            f"Not all shards in {folder} have train, val or test in their names: {examples}; "
            "rename them, or set split.lists."
        )
    return split_of
