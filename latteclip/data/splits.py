"""Read a dataset's split: its images, where they are, and their labels.

A split is listed by a file (CoOp JSON, a table, or one list per split), or follows from class
folders or from shards (`shards`).
"""

import glob
import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from latteclip.config.keys import IndexSettings
from latteclip.core.class_templates import clean_classname, clean_classnames
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import (
    CLASSES,
    DISCOVER,
    FOLDERS,
    SPLITS,
    folders_in,
    lines_of,
)
from latteclip.data import folder_files, images, shards
from latteclip.data.folder_files import IMAGE_SUFFIXES, class_names, inside

log = logging.getLogger(__name__)
TEST_FRACTION = 0.3  # of labelled images, where nothing says which are for testing
DEPTH = 3  # folders below a dataset's folder in which its parts are searched
COLUMNS = ("path", "split", "label", "classname")  # columns of a table
UNLABELLED = (None, "", -1)  # `datasets` marks an unlabelled image by the last
# The word of a shard's path that names its split, such as train or validation.
_WORD = re.compile(r"(?<![a-z0-9])(train|val|test|dev)(ing|id|idation)?(?=[^a-z]|$)")
# The image of a line, up to its suffix, and the class name after it.
_LINE = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))\s+(.+)", re.I)
CoopRow = tuple[
    str, Annotated[int, Field(ge=0)], str
]  # image, number and name of its class
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
    # Files that are no images, by suffix.
    skipped: dict[str, int] = field(default_factory=dict)


def read_split(root: Path, settings: IndexSettings) -> tuple[Path, Split]:
    """Return the folder of images and the split of a dataset's folder.

    Raises UserError where the split does not fit its form, the folder or the expected counts.
    """
    if not root.is_dir():
        raise UserError(f"Dataset folder {root} does not exist.")
    skipped = Counter[str]()
    names, rows = READERS[settings.kind](root, settings, skipped)
    items = _labelled(rows, names, root)
    split = Split(items, names, dict(skipped.most_common()))
    _check(split, settings.counts, root)
    probes = (items[0], items[len(items) // 2], items[-1])
    return _folder_with(root, settings.images, [item.path for item in probes]), split


def draw(split: Split, limit: int) -> Split:
    """Return at most `limit` images of each of SPLITS, evenly spread. No label is read."""
    chosen: list[int] = []
    for name in SPLITS:
        rows = [row for row, item in enumerate(split.items) if item.split == name]
        n = min(limit, len(rows))
        chosen += [rows[i * len(rows) // n] for i in range(n)]
    return replace(split, items=[split.items[row] for row in sorted(chosen)])


def _labelled(rows: Iterable[Row], names: Sequence[str], root: Path) -> list[Item]:
    """Return images with numbers as labels, and a hash decides splits that are not given."""
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for image_id, split, value, path in rows:
        inside(image_id, root)
        label = labels.get(value, -1) if isinstance(value, str) else value
        if value in UNLABELLED:
            label = None
        elif type(label) is not int or not 0 <= label < len(names):
            raise UserError(
                f"{root}: {image_id} has the label {str(value)[:80]!r}, none of the {len(names)} "
                "classes; complete the class names, or correct the label."
            )
        is_test = label is not None and _unit_interval(image_id) < TEST_FRACTION
        items.append(Item(image_id, split or ("test" if is_test else "train"), label, path))
    if unlabelled := Counter(item.split for item in items if item.label is None):
        log.info("%s: unlabelled images: %s.", root, dict(unlabelled))
    return items


def _unit_interval(image_id: str) -> float:
    """Return a number from 0 to 1 that depends on a path alone."""
    digest = hashlib.sha256(image_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


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
    is_file = settings.class_list or (root / CLASSES).is_file()
    if settings.class_names in (DISCOVER, FOLDERS) or not (is_file or settings.class_names):
        return []
    return lines_of(_existing(root, settings.class_list or CLASSES))


# Lists of images.


def _read_table(root: Path, settings: IndexSettings, _skipped: Counter[str]) -> Listing:
    """Read a CoOp split, a table, or lists. Labels name the classes if nothing else does."""
    table = list(TABLES[settings.kind](root, settings))
    listed = [] if settings.kind == "coop" else _listed_classes(root, settings)
    names = listed or _table_names(table, root)
    values: dict[str, Any] = {
        name: name for name in names
    }  # a class may be called by a number
    rows = (
        (image, split, name or values.get(label, shards.number_or_name(label)), image)
        for image, split, label, name in table
    )
    return names, rows


def _coop_rows(root: Path, settings: IndexSettings) -> Iterator[TableRow]:
    """Yield the rows of {"train": [[path, label, classname], ...], "val": ..., "test": ...}."""
    path = _existing(root, settings.file or "split.json")
    try:
        content = TypeAdapter(CoopSplit).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"Split file {path}: {where} {first['msg']}.") from None
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
    rows = table.reindex(columns=COLUMNS, fill_value="").itertuples(index=False)
    for row in rows:
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
    pairs = {
        (shards.number_or_name(label), name)
        for _, _, label, name in table
        if label and name
    }
    if {number for number, _ in pairs} != set(range(len(pairs))):
        raise UserError(
            f"The split of {root}: labels must be numbers from 0, each with one class name."
        )
    if pairs:
        return [name for _, name in sorted(pairs)]
    names = sorted({name or label for _, _, label, name in table} - {""})
    if names and all(isinstance(shards.number_or_name(name), int) for name in names):
        raise UserError(
            f"The split of {root} has no class names: add a column classname, or a file {CLASSES}."
        )
    return names


# Class folders.


def _read_class_folders(
    root: Path, settings: IndexSettings, skipped: Counter[str]
) -> Listing:
    """Read class folders: {train,val,test}/<class>/..., or <class>/... in the folder of images.

    A list of classes gives the names and their order. Folders match its names after clean-up.
    Images outside of class folders are unlabelled.
    """
    folder = root / settings.images
    places = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    if places and not {"train", "test"} <= places.keys():
        raise UserError(
            f"{folder} has the folders {', '.join(places)}, but both train and test are needed; "
            "add the other, or rename it."
        )
    places = places or {"": folder}
    folders = {split: folders_in(place) for split, place in places.items()}
    listed = _listed_classes(root, settings)
    # Folders of test images say their classes by themselves.
    if settings.examples and not (settings.class_names or listed or folders.get("test")):
        listed = class_names(settings.examples)
    names = listed
    name_of = dict[str, str]()
    if settings.class_names != DISCOVER:
        names = listed or _folder_names(folder, folders)
        cleaned = clean_classnames(names, settings.classname_replace)
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
                f"Class folder {place} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); add "
                "some or remove the folder."
            )
        for file in files:
            image_id = file.relative_to(folder).as_posix()
            yield image_id, split, label, image_id

    every = [rows_of(split, name) for split in places for name in ("", *folders[split])]
    return names, itertools.chain.from_iterable(every)


def _folder_names(folder: Path, folders: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of class folders, sorted."""
    train, test = (folders.get(split, []) for split in ("train", "test"))
    if train and test and not set(train) & set(test):
        raise UserError(
            f"{folder}: the folders of train {train} and of test {test} have no class in common; "
            f"put unlabelled images right into train, or list the classes in {CLASSES}."
        )
    return sorted(set(itertools.chain(*folders.values())))


# Shards.


def _read_shards(root: Path, settings: IndexSettings, skipped: Counter[str]) -> Listing:
    """Read all shards. They name the classes that no list names.

    An image of a tar has the name in it, after that of the shard where two shards have one name.
    """
    folder = root / settings.images
    found: list[tuple[str, str, shards.Sample]] = []  # shard, split, sample
    described = set()
    for shard, split in _split_of_shards(folder, settings).items():
        path = folder / shard
        try:
            samples = shards.SAMPLES[settings.kind](path, settings, skipped)
            found += [(shard, split, sample) for sample in samples]
            if settings.kind == "parquet":
                described.add(shards.described_classes(path, settings.label or "label"))
        except UserError:
            raise
        except Exception as error:  # tarfile raises errors of many kinds on damaged headers
            raise UserError(
                f"{path} is neither a complete tar without compression nor a Parquet file of "
                f"images as `datasets` writes it ({first_line(error)}); download or write it again."
            ) from None
    names = _listed_classes(root, settings)
    if not names and len(described) < 2:
        labels = {sample.label for _, _, sample in found if isinstance(sample.label, str)}
        names = [*itertools.chain(*described)] or sorted(labels - {""})
    if not names:
        raise UserError(
            f"The shards in {folder} name no classes, or differ in them: list the classes in label "
            f"order in {root / CLASSES}, or set split.label to where labels are."
        )
    names_in_tars = {sample.name for _, _, sample in found}
    are_unique = settings.kind == "webdataset" and len(names_in_tars) == len(found)
    rows = (
        (
            sample.name if are_unique else f"{shard}/{sample.name}",
            split,
            sample.label,
            f"{shard}#{sample.place}",
        )
        for shard, split, sample in found
    )
    return names, rows


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
    names = [file.name for file in folder_files.files(str(folder), settings.kind)]
    for name in sorted(name for name in names if name.lower().endswith(suffix)):
        words = _WORD.findall(name.lower())
        split = words[-1][0] if words else ""
        split_of[name] = "val" if split == "dev" else split
    splits = set(split_of.values())
    if not splits:
        raise UserError(f"{folder} holds no *{suffix}; split.images names their folder.")
    if splits != {""} and not {"train", "test"} <= splits <= set(SPLITS):
        examples = {split or "nothing": name for name, split in split_of.items()}
        raise UserError(
            f"Not all shards in {folder} have train, val or test in their names, or train or test "
            f"is missing: {examples}. Rename them, or set split.lists."
        )
    return split_of


READERS: dict[str, Callable[[Path, IndexSettings, Counter[str]], Listing]] = {
    **dict.fromkeys(TABLES, _read_table),
    "folders": _read_class_folders,
    **dict.fromkeys(shards.SAMPLES, _read_shards),
}
