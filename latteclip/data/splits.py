"""Read a dataset's split: its images, where they are, and their labels.

A split is listed by a file (CoOp JSON, a table, or one list per split), or follows from class
folders or from shards, which are files of thousands of images each: tars as WebDataset writes them,
`key.jpg` beside `key.cls` or `key.json`, or Parquet files as Hugging Face `datasets` writes them,
an image's bytes beside a label. Of shards, only headers and labels are read.

Letters: N images, C classes.
"""

import contextlib
import csv
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from latteclip.core.class_templates import clean_classname, clean_classnames
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import readable
from latteclip.data import images
from latteclip.data.folder_files import (
    CLASSES,
    IMAGE_SUFFIXES,
    SPLITS,
    files,
    image_files,
    inside,
    is_litter,
    is_utf8,
)

log = logging.getLogger(__name__)
DEPTH = 3  # folders below a dataset's folder in which its parts are searched
COLUMNS = ("path", "label", "classname", "split")  # of a table
SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}  # of shards, by kind of split
TAR_LABEL, PARQUET_LABEL = "cls", "label"  # where labels are, unless the dataset names another part
MAX_LABEL = 2**20  # bytes of a part that holds a label
MAX_ROWS = 10**7  # of a Parquet file: a footer may claim any number
UNLABELLED = (None, "", -1)  # `datasets` marks an unlabelled image by the last
LABELS_AT_ONCE = 2**16
FEATURES = b"huggingface"  # the key of metadata in which `datasets` describes columns
# The word of a shard's path that names its split.
_WORD = re.compile(
    r"(?<![a-z0-9])(train|training|val|valid|validation|dev|test)(?=[^a-z]|$)", re.IGNORECASE
)
_SPLIT_OF = {"train": "train", "training": "train", "test": "test"}  # all others: val
Label = int | str | None  # a number, a class name, or unknown
Row = tuple[str, str, Label, str]  # of an `Item`, whose split may be "", and its label a class name
# Class names in label order, rows, and numbers of files that are no images, once the rows are read.
Listing = tuple[list[str], Iterable[Row], Counter[str]]
CoopSplit = dict[str, list[tuple[str, Annotated[int, Field(ge=0)], str]]]


class Item(NamedTuple):
    """An image of a split."""

    image_id: str
    split: str
    label: int | None  # None where it is unknown
    path: str  # relative to the folder of images, as `latteclip.data.images` reads it


@dataclass(frozen=True)
class Split:
    """N images, and C class names as the dataset writes them, in label order."""

    items: list[Item]
    names: list[str]
    skipped: dict[str, int] = field(default_factory=dict)  # files that are no images, by suffix


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
    label: str | None = None  # of webdataset the suffix of labels, of parquet their column
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
    if not root.is_dir():
        raise UserError(f"Dataset folder {root} does not exist.")
    with readable():
        names, rows, skipped = READERS[settings.kind](root, settings)
        items = _labelled(rows, names, settings.test_fraction, root)
        split = Split(items, names, dict(skipped.most_common()))
        _check(split, settings.counts, root)
        return _images_folder(root, settings.images, split.items), split


def _labelled(
    rows: Iterable[Row], names: Sequence[str], test_fraction: float, root: Path
) -> list[Item]:
    """Return images with numbers as labels.

    Where no row has a split, a hash of its path decides which labelled images are for testing.
    """
    labels = {name: label for label, name in enumerate(names)}
    items, has_splits = [], False
    for image_id, split, value, path in rows:
        inside(image_id, root)
        label = labels.get(value, -1) if isinstance(value, str) else value
        if label is not None and not 0 <= label < len(names):
            raise UserError(
                f"{root}: {image_id} has the label {str(value)[:80]!r}, which is none of the "
                f"{len(names)} classes; complete the class names, or correct the label."
            )
        has_splits |= bool(split)
        if not split:
            is_test = label is not None and _unit_interval(image_id) < test_fraction
            split = "test" if is_test else "train"
        items.append(Item(image_id, split, label, path))
    unlabelled = Counter(item.split for item in items if item.label is None)
    if unlabelled:
        log.info("%s: unlabelled images: %s.", root, dict(unlabelled))
    return items if has_splits or unlabelled else _with_both_splits(items)


def _with_both_splits(items: list[Item]) -> list[Item]:
    """Move the image whose hash is nearest to the other split, where the hash left that empty."""
    splits = {item.split for item in items}
    if len(splits) > 1 or len(items) < 2:
        return items
    pick, other = (min, "test") if splits == {"train"} else (max, "train")
    moved = pick(items, key=lambda item: _unit_interval(item.image_id))
    return [item._replace(split=other) if item is moved else item for item in items]


def _unit_interval(image_id: str) -> float:
    """Return a number from 0 to 1 that depends on a path alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64


def draw(split: Split, limit: int) -> Split:
    """Return at most `limit` images of each of train, val and test, evenly spread over its order.

    The order is that of class folders, lists or shards. No label is read.
    """
    drawn: list[int] = []
    for name in SPLITS:
        rows = [row for row, item in enumerate(split.items) if item.split == name]
        n = min(limit, len(rows))
        drawn += [rows[i * len(rows) // n] for i in range(n)]
    return replace(split, items=[split.items[row] for row in sorted(drawn)])


def _check(split: Split, counts: Mapping[str, int], root: Path) -> None:
    """Raise UserError for no images, repeated images, or other numbers than the expected ones."""
    if not split.items:
        raise UserError(f"The split of {root} lists no image.")
    if strange := [name for name in split.names if not is_utf8(name)]:
        raise UserError(f"{root}: class name {strange[0]!r} is not UTF-8; correct it.")
    repeated = [i for i, n in Counter(item.image_id for item in split.items).items() if n > 1]
    if repeated:
        raise UserError(
            f"The split of {root} lists {len(repeated)} images twice, the first {repeated[0]!r}."
        )
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


def _images_folder(root: Path, name: str, items: Sequence[Item]) -> Path:
    """Return `root/name`, or else the folder near the top of `root` that holds the images."""
    probes = [items[i].path for i in (0, len(items) // 2, -1)]
    for folder in _nearby(root, name):
        if any(images.image_exists(folder / probe) for probe in probes):
            return folder
    raise UserError(
        f"The images of the split, such as {probes[0]}, are neither in {root / name} nor in the "
        f"folders below {root}."
    )


def _existing(root: Path, name: str) -> Path:
    """Return `root/name`, or else a file with the last part of `name` near the top of `root`.

    Mirrors pack the same files under other top folders.
    """
    for folder in _nearby(root, Path(name).parent):
        path = folder / Path(name).name
        if path.is_file():
            return path
    raise UserError(f"Split file {name} is neither in {root} nor in the folders below it.")


def _nearby(root: Path, name: str | Path) -> Iterator[Path]:
    """Yield `root/name`, then `root` and the folders below it, nearest first, down to DEPTH."""
    yield from (root / name, root)
    for depth in range(1, DEPTH + 1):
        yield from sorted(root.glob("*/" * depth))


def _listed_classes(root: Path, settings: SplitSettings) -> list[str] | None:
    """Return the class names that a file lists, in label order, None where there is no file."""
    if settings.classes is None and not (root / CLASSES).is_file():
        return None
    return list(_lines(_existing(root, settings.classes or CLASSES)))


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file that are not empty, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8 text: {error}.") from None
    return (line.strip() for line in text.splitlines() if line.strip())


def _number_or_name(text: str) -> int | str:
    """Return a label as a number if it is one."""
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else text


# --- files that list the images ------------------------------------------------------------------


def read_coop(root: Path, settings: SplitSettings) -> Listing:
    """Read a CoOp split: {"train": [[path, label, classname], ...], "val": ..., "test": ...}."""
    path = _existing(root, settings.file or "split.json")
    try:
        content = TypeAdapter(CoopSplit).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"Split file {path}: {place} {first['msg']}.") from None
    if not {"train", "test"} <= content.keys() <= set(SPLITS):
        raise UserError(f"Split file {path} must have the keys train and test, and perhaps val.")
    rows = [(split, *row) for split in SPLITS for row in content.get(split, [])]
    names = _in_label_order([(label, name) for *_, label, name in rows], path)
    return names, ((image, split, label, image) for split, image, label, _ in rows), Counter()


def _read_lists(root: Path, settings: SplitSettings) -> Listing:
    """Read one list per split, of lines "<image> <class name>"."""

    def rows() -> Iterator[Row]:
        for split, listed in settings.lists.items():
            for line in _lines(_existing(root, listed)):
                image, _, name = line.partition(" ")
                yield image + settings.suffix, split, name, image + settings.suffix

    return _listed_classes(root, settings) or [], rows(), Counter()


def _read_csv(root: Path, settings: SplitSettings) -> Listing:
    """Read a table with the columns path, and any of label, classname, split. A .tsv has tabs.

    An image with neither label nor classname is unlabelled. A label is a number where there are
    class names (a column, or a file of them), else it is the class name itself.
    """
    path = _existing(root, settings.file or "split.csv")
    table = list(_csv_rows(path))
    names = _listed_classes(root, settings) or _csv_names(table, path)
    known = set(names)

    def rows() -> Iterator[Row]:
        for row in table:
            label: Label = row["classname"] or row["label"] or None
            if label and label == row["label"] and label not in known:
                label = _number_or_name(label)
            yield row["path"], row["split"], label, row["path"]

    return names, rows(), Counter()


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield rows with all COLUMNS, "" where a cell is empty."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            header = [name.strip().lower() for name in reader.fieldnames or []]
            if "path" not in header or not set(header) <= set(COLUMNS):
                raise UserError(
                    f"Split file {path} must begin with the column names path and any of label, "
                    f"classname, split; it begins with {','.join(header)!r}."
                )
            reader.fieldnames = header
            for row in reader:
                cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
                cells["split"] = cells["split"].lower()
                if None in row or cells["split"] not in ("", *SPLITS):
                    raise UserError(
                        f"{path}, line {reader.line_num}: more fields than columns, or split "
                        f"{cells['split']!r} is none of {', '.join(SPLITS)}."
                    )
                yield cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Split file {path} is not valid CSV in UTF-8: {error}.") from None


def _csv_names(table: Sequence[Mapping[str, str]], path: Path) -> list[str]:
    """Return the class names of a table, by their numbers where it has both."""
    both = [
        (_number_or_name(row["label"]), row["classname"])
        for row in table
        if row["label"] and row["classname"]
    ]
    if both:
        return _in_label_order(both, path)
    names = sorted({row["classname"] or row["label"] for row in table} - {""})
    if all(isinstance(_number_or_name(name), int) for name in names):
        raise UserError(
            f"Split file {path} has no class names: add a column classname, or a file {CLASSES} "
            "with one name per line."
        )
    return names


def _in_label_order(labels: Sequence[tuple[int | str, str]], path: Path) -> list[str]:
    """Return class names by their labels."""
    names = dict(labels)
    wrong = [label for label, name in labels if names[label] != name]
    wrong += [label for label in range(len(names)) if label not in names]
    if wrong:
        raise UserError(
            f"Split file {path}: label {wrong[0]} has no class name or several; labels run from 0 "
            "without a gap."
        )
    return [names[label] for label in range(len(names))]


# --- class folders -------------------------------------------------------------------------------


def _read_class_folders(root: Path, settings: SplitSettings) -> Listing:
    """Read class folders: {train,val,test}/<class>/..., or <class>/... in the folder of images.

    A list of classes gives the names and their order, and folders are matched with it after
    clean-up. Otherwise the folders name the classes. Images outside of class folders are
    unlabelled.
    """
    folder = root / settings.images
    parts = [split for split in SPLITS if (folder / split).is_dir()]
    if parts and not {"train", "test"} <= set(parts):
        raise UserError(f"{folder} has a folder {parts[0]} but not both of train and test.")
    places = {split: folder / split for split in parts} or {"": folder}
    class_folders = {
        split: sorted(f for f in place.iterdir() if f.is_dir() and not is_litter(f.name))
        for split, place in places.items()
    }
    listed = _listed_classes(root, settings)
    names = listed or _folder_names(folder, class_folders)
    replacements = settings.classname_replace
    name_of = dict(zip(clean_classnames(names, replacements), names, strict=True))
    skipped = Counter[str]()

    def rows() -> Iterator[Row]:
        for split, place in places.items():
            for class_folder in (place, *class_folders[split]):
                is_class = class_folder != place
                found = image_files(class_folder, skipped, deep=is_class)
                name = name_of.get(clean_classname(class_folder.name, replacements))
                if is_class and split == "test" and found and name is None:
                    raise UserError(f"{class_folder} is none of the classes of {CLASSES}: {names}.")
                if is_class and split != "test" and not found and listed is None:
                    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                    raise UserError(
                        f"Class folder {class_folder} holds no image ({suffixes}); add some or "
                        "remove the folder."
                    )
                for file in found:
                    image_id = file.relative_to(folder).as_posix()
                    yield image_id, split, name if is_class else None, image_id

    return names, rows(), skipped


def _folder_names(folder: Path, class_folders: Mapping[str, Sequence[Path]]) -> list[str]:
    found = {split: {place.name for place in places} for split, places in class_folders.items()}
    names = sorted(set().union(*found.values()))
    if not names:
        raise UserError(
            f"{folder} holds no class folders; put each class's images in one, or write the class "
            f"names into {CLASSES}, one per line, if no image has a label."
        )
    train, test = found.get("train", set()), found.get("test", set())
    if train and test and not train & test:
        raise UserError(
            f"{folder}: the folders of train {sorted(train)} and of test {sorted(test)} have no "
            f"class in common; put unlabelled images right into train, or write the class names "
            f"into {CLASSES}."
        )
    return names


# --- shards --------------------------------------------------------------------------------------


Sample = tuple[str, str, Label]  # name and place in the shard (`images.shard_member`), and label


def _read_shards(root: Path, settings: SplitSettings) -> Listing:
    """Read the images of all shards, in the order of the shards' paths.

    Without a list of classes, Parquet files describe the classes, or the labels name them.
    """
    folder = root / settings.images
    if settings.lists:
        found = _listed_shards(folder, settings.lists)
    else:
        found = _named_shards(folder, settings.kind)
    is_parquet = settings.kind == "parquet"
    skipped = Counter[str]()
    rows: list[Row] = []
    for shard, split in found:
        name = os.path.relpath(shard, folder)
        samples = _parquet_samples if is_parquet else _tar_samples
        for sample, place, label in samples(shard, settings, skipped):
            rows.append((f"{name}/{sample}", split, label, f"{name}#{place}"))
    names = _listed_classes(root, settings)
    if names is None and is_parquet:
        described = {_described_classes(s, settings.label or PARQUET_LABEL) for s, _ in found}
        if len(described) > 1:
            raise UserError(
                f"The shards in {folder} describe different classes; name them in split.classes."
            )
        names = list(described.pop())
    names = names or sorted({label for _, _, label, _ in rows if isinstance(label, str)})
    if not names:
        raise UserError(
            f"The shards in {folder} do not name their classes: write the class names into "
            f"{root / CLASSES}, one per line in label order, or set split.label to where labels "
            "are."
        )
    return names, rows, skipped


def _listed_shards(folder: Path, lists: Mapping[str, str]) -> list[tuple[Path, str]]:
    """Return the shards that fit the glob of each split, with the split."""
    found = []
    for split in filter(lists.__contains__, SPLITS):
        names = glob.iglob(lists[split], root_dir=folder, recursive=True)
        shards = sorted(path for path in map(folder.joinpath, names) if path.is_file())
        if not shards:
            raise UserError(f"No shard in {folder} fits {lists[split]!r}, split.lists.{split}.")
        found += [(shard, split) for shard in shards]
    return found


def _named_shards(folder: Path, kind: str) -> list[tuple[Path, str]]:
    """Return all shards, each with the split that a word of its path names, or ""."""
    found = dict[Path, str]()
    for name in sorted(Path(file.name) for file in files(str(folder), kind)):
        if name.suffix.lower() == SUFFIXES[kind]:
            words: list[str] = _WORD.findall(name.as_posix())
            found[folder / name] = _SPLIT_OF.get(words[-1].lower(), "val") if words else ""
    splits = set(found.values())
    if not found:
        raise UserError(
            f"{folder} holds no shards (*{SUFFIXES[kind]}); split.images names their folder."
        )
    if splits != {""} and not {"train", "test"} <= splits <= set(SPLITS):
        examples = {split: path.name for path, split in found.items()}
        named = ", ".join(f"{name}: {split or 'nothing'}" for split, name in examples.items())
        raise UserError(
            f"The names of all shards in {folder}, or of none, must say train, val or test, and "
            f"name both train and test ({named}); split.lists can name the shards of each split."
        )
    return list(found.items())


@contextlib.contextmanager
def _explained(shard: Path, form: str) -> Iterator[None]:
    """Turn whatever the reader of a damaged shard raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tarfile raises errors of many kinds on damaged headers
        raise UserError(
            f"{shard} is not {form} ({first_line(error)}); download or write it again."
        ) from None


def _checked_label(value: object, where: str) -> Label:
    """Return a value as a label, None where it marks an unlabelled image."""
    if value in UNLABELLED:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where} is {str(value)[:80]!r}, neither a number nor a class name.")
    return value


def _tar_samples(shard: Path, settings: SplitSettings, skipped: Counter[str]) -> Iterator[Sample]:
    """Yield the images of a tar in order, and count samples without an image by suffix."""
    label_suffix, _, json_key = (settings.label or TAR_LABEL).partition(":")
    wanted = {f".{settings.image.lower()}"} if settings.image else IMAGE_SUFFIXES
    with (
        _explained(shard, "a whole tar without compression"),
        shard.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=HeaderOrEnd) as tar,
    ):
        for key, group in itertools.groupby(_tar_parts(tar, shard), itemgetter(0)):
            parts = {suffix: entry for _, suffix, entry in group}
            found = [suffix for suffix in parts if f".{suffix}" in wanted]
            if not found:
                skipped[f".{next(iter(parts))}"] += 1
                continue
            if len(found) > 1:
                raise UserError(
                    f"{shard}: the sample {key!r} has {len(found)} images ({', '.join(found)}); "
                    "split.image of the dataset says which one counts."
                )
            image, label = parts[found[0]], parts.get(label_suffix.lower())
            where = f"{shard}: {key}.{label_suffix}"
            value = _tar_label(file, label, json_key, where) if label else None
            yield f"{key}.{found[0]}", f"{image.offset_data}+{image.size}", value


def _tar_parts(tar: tarfile.TarFile, shard: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the parts of samples: key, suffix in lower case, and entry."""
    for entry in tar_entries(tar):
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            raise UserError(f"{shard} holds {entry.name[:80]!r}, no plain file: refused.")
        folder, slash, name = inside(entry.name.removeprefix("./"), shard).rpartition("/")
        key, dot, suffix = name.partition(".")
        if key and dot:  # neither hidden nor of no sample
            yield folder + slash + key, suffix.lower(), entry


def _tar_label(file: BinaryIO, entry: tarfile.TarInfo, json_key: str, where: str) -> Label:
    """Read a part that holds a label: an integer, a class name, or a field of JSON with either."""
    file.seek(entry.offset_data)
    content = file.read(min(entry.size, MAX_LABEL + 1))
    try:
        if len(content) > MAX_LABEL:
            raise ValueError
        text = content.decode("utf-8").strip()
        value = json.loads(text)[json_key] if json_key else _number_or_name(text)
    except (ValueError, LookupError, TypeError, RecursionError):
        what = f"JSON with the field {json_key!r}" if json_key else "text in UTF-8"
        raise UserError(
            f"{where} is not {what} of at most {MAX_LABEL} bytes; set split.label to where labels "
            "are."
        ) from None
    return _checked_label(value, where)


class HeaderOrEnd(tarfile.TarInfo):
    """A header or the end mark of a tar. tarfile takes anything else for the end as well."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "HeaderOrEnd":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError(f"no end mark, or a damaged header: {error}") from None


def tar_entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar that was opened with HeaderOrEnd.

    Raises:
        ReadError: an entry leads back, so that tarfile would read without end (CVE-2025-8194).
    """
    offset = 0
    while (entry := tar.next()) is not None:
        if entry.size < 0 or tar.offset <= offset:
            raise tarfile.ReadError("an entry leads back to an earlier one")
        offset = tar.offset
        yield entry
        tar.members.clear()  # type: ignore[attr-defined]  # a million take a gigabyte


def _parquet_samples(
    shard: Path, settings: SplitSettings, _skipped: Counter[str]
) -> Iterator[Sample]:
    """Yield the images of a Parquet file in order. Without a column of labels they have none."""
    number = itertools.count()
    with _opened(shard) as file:
        images.image_column(file)
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it has more than {MAX_ROWS} rows")
        for group in range(file.num_row_groups):
            for row, value in enumerate(_column_of_labels(file, group, settings.label)):
                name = str(next(number))
                label = _checked_label(value, f"{shard}: the label of row {name}")
                yield name, f"{group}+{row}", label


@contextlib.contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    form = "a Parquet file of images as datasets writes them"
    with _explained(shard, form), pq.ParquetFile(shard) as file:
        yield file


def _column_of_labels(file: Any, group: int, label: str | None) -> Iterator[Any]:
    """Yield the labels of a row group."""
    names, column = file.schema_arrow.names, label or PARQUET_LABEL
    if column not in names:
        if label is not None:
            raise ValueError(f"it has no column {label!r} but {names}")
        yield from itertools.repeat(None, file.metadata.row_group(group).num_rows)
        return
    # Numbers take little memory, however many they are. Other values are read one by one.
    are_numbers = pa.types.is_integer(file.schema_arrow.field(column).type)
    for labels in images.rows(file, group, column, LABELS_AT_ONCE if are_numbers else 1):
        yield from labels.to_pylist()


def _described_classes(shard: Path, column: str) -> tuple[str, ...]:
    """Return the class names in label order that a Parquet file describes, if any."""
    with _opened(shard) as file, contextlib.suppress(KeyError, TypeError, ValueError):
        features = json.loads(file.schema_arrow.metadata[FEATURES])["info"]["features"]
        return TypeAdapter(tuple[str, ...]).validate_python(features[column]["names"])
    return ()


READERS: dict[str, Callable[[Path, SplitSettings], Listing]] = {
    "coop": read_coop,
    "csv": _read_csv,
    "lists": _read_lists,
    "folders": _read_class_folders,
    "webdataset": _read_shards,
    "parquet": _read_shards,
}
