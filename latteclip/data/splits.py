"""Read a dataset's split: its images, where they are, and their labels.

A split is listed by a file (CoOp JSON, a table, or one list per split), or follows from class
folders or from shards, which are files of thousands of images each: tars as WebDataset writes them,
`key.jpg` beside `key.cls` or `key.json`, or Parquet files as Hugging Face `datasets` writes them,
an image's bytes beside a label. Of shards, only headers and labels are read.
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
from typing import Annotated, Any, BinaryIO, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from latteclip.config.sections.split import ListsSection, SplitSection
from latteclip.core.class_templates import clean_classname, clean_classnames
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import readable
from latteclip.core.folder_names import (
    CLASSES,
    DISCOVER,
    FOLDERS,
    SPLITS,
    folders_in,
    lines_of,
)
from latteclip.data import folder_files, images
from latteclip.data.examples import class_names
from latteclip.data.folder_files import IMAGE_SUFFIXES, inside

log = logging.getLogger(__name__)
DEPTH = 3  # folders below a dataset's folder in which its parts are searched
COLUMNS = ("path", "split", "label", "classname")  # columns of a table
# Suffixes of shards, by kind of split.
SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
MAX_LABEL = 2**20  # bytes of a part that holds a label
# A tar's headers: bytes of each, which tarfile reads whole, and number of global ones, at most.
MAX_HEADER = 2**18
MAX_GLOBALS = 100
LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MAX_ROWS = 10**7  # rows of a Parquet file, at most: a footer may claim any number
UNLABELLED = (None, "", -1)  # `datasets` marks an unlabelled image by the last
LABELS_AT_ONCE = 2**16
FEATURES = b"huggingface"  # the key of metadata in which `datasets` describes columns
# The word of a shard's path that names its split.
_WORD = re.compile(
    r"(?<![a-z0-9])(train|val|test|training|valid|validation|dev)(?=[^a-z]|$)", re.I
)
_SPLIT_OF = {"train": "train", "training": "train", "test": "test"}  # all others: val
CoopSplit = dict[str, list[tuple[str, Annotated[int, Field(ge=0)], str]]]
# Image, split ("": a hash decides), label (a number, a class name or one of UNLABELLED), and path.
Row = tuple[str, str, Any, str]
Listing = tuple[list[str], Iterable[Row]]  # class names in label order, and images
# Name and place in a shard (`images.shard_member`), and label.
Sample = tuple[str, str, Any]


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


def read_split(root: Path, settings: SplitSection) -> tuple[Path, Split]:
    """Return the folder of images and the split of a dataset's folder.

    Raises UserError where the split does not fit its form, the folder or the expected counts.
    """
    if not root.is_dir():
        raise UserError(f"Dataset folder {root} does not exist.")
    skipped = Counter[str]()
    read = READERS[settings.kind]
    with readable():
        names, rows = read(root, settings, skipped)
        items = _labelled(rows, names, settings.test_fraction, root)
        split = Split(items, names, dict(skipped.most_common()))
        _check(split, settings.counts.model_dump(exclude_none=True), root)
        probes = (items[0], items[len(items) // 2], items[-1])
        paths = [item.path for item in probes]
        return _folder_with(root, settings.images, paths), split


def _labelled(
    rows: Iterable[Row], names: Sequence[str], test_fraction: float, root: Path
) -> list[Item]:
    """Return images with numbers as labels, for testing by a hash where no row has a split."""
    labels = {name: label for label, name in enumerate(names)}
    items = []
    has_splits = False
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
    numbers = [_unit_interval(item.image_id) for item in items]
    row = numbers.index(min(numbers))
    other = "test"
    if splits == {"test"}:
        row = numbers.index(max(numbers))
        other = "train"
    moved = items[row]._replace(split=other)
    return [*items[:row], moved, *items[row + 1 :]]


def _unit_interval(image_id: str) -> float:
    """Return a number from 0 to 1 that depends on a path alone."""
    digest = hashlib.sha256(image_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def draw(split: Split, limit: int) -> Split:
    """Return at most `limit` images of each of SPLITS, evenly spread. No label is read."""
    chosen: list[int] = []
    for name in SPLITS:
        rows = [row for row, item in enumerate(split.items) if item.split == name]
        n_rows = len(rows)
        n = min(limit, n_rows)
        chosen += [rows[i * n_rows // n] for i in range(n)]
    return replace(split, items=[split.items[row] for row in sorted(chosen)])


def _check(split: Split, counts: Mapping[str, int], root: Path) -> None:
    """Raise UserError for no images, repeated images, or other numbers than the expected ones."""
    if not split.items:
        raise UserError(f"The split of {root} lists no image.")
    if strange := [name for name in split.names if not folder_files.is_utf8(name)]:
        raise UserError(f"{root}: class name {strange[0]!r} is not UTF-8; correct it.")
    times = Counter(item.image_id for item in split.items)
    [(image_id, n_times)] = times.most_common(1)
    if n_times > 1:
        raise UserError(f"The split of {root} lists images twice, such as {image_id!r}.")
    tests = sum(item.split == "test" for item in split.items)
    numbers = {
        "train": len(split.items) - tests,
        "test": tests,
        "classes": len(split.names),
    }
    if not counts.items() <= numbers.items():
        raise UserError(
            f"The split of {root} has {numbers}, where {dict(counts)} are expected; complete the "
            "folder, or correct split.counts of the dataset (train counts val as well)."
        )


def _folder_with(root: Path, name: str | Path, wanted: Sequence[str]) -> Path:
    """Return `root/name`, or else the folder near the top of `root`, with one of the files."""

    def folders() -> Iterator[Path]:
        yield root / name
        yield root
        # Mirrors pack the same files under other top folders.
        for depth in range(1, DEPTH + 1):
            yield from sorted(root.glob("*/" * depth))

    for folder in folders():
        if any(images.image_exists(folder / file) for file in wanted):
            return folder
    raise UserError(
        f"{wanted[0]} is neither in {root / name} nor in the folders below {root}."
    )


def _existing(root: Path, name: str) -> Path:
    """Return `root/name`, or else a file with the last part of `name` near the top of `root`."""
    path = Path(name)
    return _folder_with(root, path.parent, [path.name]) / path.name


def _listed_classes(root: Path, settings: SplitSection) -> list[str]:
    """Return the class names that a file lists, in label order, none where there is no file."""
    if settings.classes in (DISCOVER, FOLDERS):
        return []
    if settings.classes is None and not (root / CLASSES).is_file():
        return []
    return lines_of(_existing(root, settings.classes or CLASSES))


def _number_or_name(text: str) -> int | str:
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else text


def _read_table(root: Path, settings: SplitSection, _skipped: Counter[str]) -> Listing:
    """Read a CoOp split, a table, or lists. Labels name the classes if nothing else does."""
    table = list(TABLES[settings.kind](root, settings))
    listed = [] if settings.kind == "coop" else _listed_classes(root, settings)
    names = listed or _table_names(table, root)
    known = set(names)

    def rows() -> Iterator[Row]:
        for image, split, label, name in table:
            value: int | str = name or label
            if not name and label not in known:
                value = _number_or_name(label)
            yield image, split, value, image

    return names, rows()


def _coop_rows(root: Path, settings: SplitSection) -> Iterator[tuple[str, ...]]:
    """Yield COLUMNS of {"train": [[path, label, classname], ...], "val": ..., "test": ...}."""
    path = _existing(root, settings.file or "split.json")
    try:
        content = TypeAdapter(CoopSplit).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"Split file {path}: {where} {first['msg']}.") from None
    if not {"train", "test"} <= content.keys() <= set(SPLITS):
        raise UserError(
            f"Split file {path} must have the keys train and test, and perhaps val."
        )
    for split in SPLITS:
        for image, label, name in content.get(split, []):
            yield image, split, str(label), name


def _csv_rows(root: Path, settings: SplitSection) -> Iterator[tuple[str, ...]]:
    """Yield COLUMNS of a table, which has path and perhaps the others. A .tsv has tabs."""
    path = _existing(root, settings.file or "split.csv")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True, restval="")
            header = [name.strip().lower() for name in reader.fieldnames or []]
            if not {"path"} <= set(header) <= set(COLUMNS):
                raise UserError(
                    f"Split file {path} has the columns {header}, and not path with any of "
                    f"{COLUMNS[1:]}."
                )
            reader.fieldnames = header
            for row in reader:
                image, split, label, name = (
                    row.get(column, "").strip() for column in COLUMNS
                )
                if None in row or split.lower() not in ("", *SPLITS):
                    raise UserError(
                        f"{path}, line {reader.line_num}: more fields than columns, or split "
                        f"{split!r} is none of {', '.join(SPLITS)}."
                    )
                yield image, split.lower(), label, name
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Split file {path} is not valid CSV in UTF-8: {error}.") from None


def listed_splits(lists: ListsSection) -> dict[str, str]:
    """Return the list of each split that has one, in the order of the index."""
    return dict(sorted(lists.model_dump(exclude_none=True).items()))


def _list_rows(root: Path, settings: SplitSection) -> Iterator[tuple[str, ...]]:
    """Yield COLUMNS of one list per split, of lines "<image> <class name>"."""
    for split, listed in listed_splits(settings.lists).items():
        for line in lines_of(_existing(root, listed)):
            image, _, name = line.partition(" ")
            yield image + settings.suffix, split, "", name


TABLES = {"coop": _coop_rows, "csv": _csv_rows, "lists": _list_rows}


def _table_names(table: Sequence[Sequence[str]], root: Path) -> list[str]:
    """Return class names by their numbers where a table has both, else sorted."""
    names: dict[int | str, str] = {}
    wrong: list[int | str] = []
    values: set[str] = set()
    for _, _, label, name in table:
        values.add(name or label)
        if label and name:
            number = _number_or_name(label)
            if names.setdefault(number, name) != name:
                wrong.append(number)
    numbers = range(len(names))
    wrong += [number for number in numbers if number not in names]
    if wrong:
        raise UserError(
            f"The split of {root}: label {wrong[0]} has no class name, or several; number the "
            "classes from 0."
        )
    if names:
        return [names[number] for number in numbers]
    values -= {""}
    if table and all(isinstance(_number_or_name(name), int) for name in values):
        raise UserError(
            f"The split of {root} has no class names: add a column classname, or a file {CLASSES}."
        )
    return sorted(values)


def _read_class_folders(
    root: Path, settings: SplitSection, skipped: Counter[str]
) -> Listing:
    """Read class folders: {train,val,test}/<class>/..., or <class>/... in the folder of images.

    A list of classes gives the names and their order. Folders match its names after clean-up.
    Images outside of class folders are unlabelled.
    """
    folder = root / settings.images
    parts = [split for split in SPLITS if (folder / split).is_dir()]
    if parts and not {"train", "test"} <= set(parts):
        raise UserError(
            f"{folder} has a folder {parts[0]}, but both train and test are needed; add the other, "
            "or rename it."
        )
    split_folders = {split: folder / split for split in parts} or {"": folder}
    class_folders = {}
    for split, split_folder in split_folders.items():
        class_folders[split] = folders_in(split_folder)
    listed = _listed_classes(root, settings)
    if not listed and settings.examples and settings.classes is None:
        # Folders of test images say their classes by themselves.
        listed = [] if class_folders.get("test") else class_names(settings.examples)
    names = listed
    if not listed and settings.classes != DISCOVER:
        names = _folder_names(folder, class_folders)
    replacements = settings.classname_replace
    cleaned = clean_classnames(names, replacements) if names else []
    name_of = dict(zip(cleaned, names, strict=True))

    def rows() -> Iterator[Row]:
        for split, split_folder in split_folders.items():
            for name in ("", *class_folders[split]):
                place = split_folder / name
                files = folder_files.image_files(place, skipped, deep=bool(name))
                label = name_of.get(clean_classname(name, replacements))
                if name and split == "test" and files and label is None:
                    _refuse_test_folder(place, names, settings)
                if name and split != "test" and not files and not listed:
                    raise UserError(
                        f"Class folder {place} holds no image "
                        f"({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove the folder."
                    )
                for file in files:
                    image_id = file.relative_to(folder).as_posix()
                    yield image_id, split, label, image_id

    return names, rows()


def _refuse_test_folder(
    place: Path, names: Sequence[str], settings: SplitSection
) -> NoReturn:
    """Raise UserError for a folder of test images whose name is no class."""
    if settings.classes == DISCOVER:
        raise UserError(
            f"{place} names the class of test images, but split.classes {DISCOVER} is for images "
            f"without classes; leave it out, or move these images into {place.parent} itself."
        )
    raise UserError(
        f"{place} is not a class of {CLASSES} or split.examples: {names}; rename or remove it."
    )


def _folder_names(folder: Path, class_folders: Mapping[str, Sequence[str]]) -> list[str]:
    names = sorted(set(itertools.chain(*class_folders.values())))
    if not names:
        raise UserError(
            f"{folder} holds no class folders; add them, or list the classes in {CLASSES}."
        )
    train, test = (class_folders.get(split, []) for split in ("train", "test"))
    if train and test and not set(train) & set(test):
        raise UserError(
            f"{folder}: the folders of train {train} and of test {test} have no class in common; "
            f"put unlabelled images right into train, or list the classes in {CLASSES}."
        )
    return names


def _read_shards(root: Path, settings: SplitSection, skipped: Counter[str]) -> Listing:
    """Read all shards in the order of their paths. They name the classes that no list names."""
    folder = root / settings.images
    samples = _parquet_samples if settings.kind == "parquet" else _tar_samples
    rows: list[Row] = []
    described: set[tuple[str, ...]] = set()
    shards = _listed_shards(folder, listed_splits(settings.lists))
    if not shards:
        shards = _named_shards(folder, settings.kind)
    for shard, split in shards:
        name = os.path.relpath(shard, folder)
        try:
            for sample, position, label in samples(shard, settings, skipped, described):
                rows.append((f"{name}/{sample}", split, label, f"{name}#{position}"))
        except UserError:
            raise
        except Exception as error:  # tarfile raises errors of many kinds on damaged headers
            raise UserError(
                f"{shard} is neither a complete tar without compression nor a Parquet file of "
                f"images as `datasets` writes it ({first_line(error)}); download or write it again."
            ) from None
    names = _listed_classes(root, settings)
    if not names and len(described) < 2:
        names = list(itertools.chain(*described))
        if not names:
            labels = {label for _, _, label, _ in rows if isinstance(label, str)}
            names = sorted(labels - {""})
    if not names:
        raise UserError(
            f"The shards in {folder} name no classes, or differ in them: list the classes in label "
            f"order in {root / CLASSES}, or set split.label to where labels are."
        )
    return names, rows


def _listed_shards(folder: Path, lists: Mapping[str, str]) -> list[tuple[Path, str]]:
    """Return the shards that fit the glob of each split, with the split."""
    listed = []
    for split in SPLITS:
        if split not in lists:
            continue
        names = glob.iglob(lists[split], root_dir=folder, recursive=True)
        shards = sorted(filter(Path.is_file, map(folder.joinpath, names)))
        if not shards:
            raise UserError(
                f"No shard in {folder} fits {lists[split]!r}, split.lists.{split}."
            )
        listed += [(shard, split) for shard in shards]
    return listed


def _named_shards(folder: Path, kind: str) -> list[tuple[Path, str]]:
    """Return all shards, each with the split that a word of its path names, or ""."""
    split_of = dict[Path, str]()
    for name in sorted(Path(file.name) for file in folder_files.files(str(folder), kind)):
        if name.suffix.lower() == SUFFIXES[kind]:
            words: list[str] = _WORD.findall(name.as_posix())
            split_of[folder / name] = ""
            if words:
                split_of[folder / name] = _SPLIT_OF.get(words[-1].lower(), "val")
    splits = set(split_of.values())
    if not split_of:
        raise UserError(
            f"{folder} holds no *{SUFFIXES[kind]}; split.images names their folder."
        )
    if splits != {""} and not {"train", "test"} <= splits <= set(SPLITS):
        examples = {split or "nothing": path.name for path, split in split_of.items()}
        raise UserError(
            f"Not all shards in {folder} have train, val or test in their names, or train or test "
            f"is missing: {examples}. Rename them, or set split.lists."
        )
    return list(split_of.items())


def _tar_samples(
    shard: Path, settings: SplitSection, skipped: Counter[str], _described: object
) -> Iterator[Sample]:
    """Yield the images of a tar in order, and count samples without an image by suffix."""
    label_suffix, _, json_key = (settings.label or "cls").partition(":")
    wanted = {f".{settings.image.lower()}"} if settings.image else IMAGE_SUFFIXES
    with (
        shard.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=HeaderOrEnd) as tar,
    ):
        for key, group in itertools.groupby(_tar_parts(tar, shard), itemgetter(0)):
            parts: dict[str, tarfile.TarInfo] = {}
            for _, suffix, entry in group:
                if parts.setdefault(suffix, entry) is not entry:
                    raise UserError(
                        f"{shard}: the sample {key!r} has {suffix!r} twice; remove one."
                    )
            suffixes = [suffix for suffix in parts if f".{suffix}" in wanted]
            if not suffixes:
                skipped[f".{next(iter(parts))}"] += 1
                continue
            if len(suffixes) > 1:
                raise UserError(
                    f"{shard}: the sample {key!r} has the images {suffixes}; set split.image "
                    "to one."
                )
            image = parts[suffixes[0]]
            label = parts.get(label_suffix.lower())
            where = f"{shard}: {key}.{label_suffix}"
            value = _tar_label(file, label, json_key, where) if label else None
            yield f"{key}.{suffixes[0]}", f"{image.offset_data}+{image.size}", value


def _tar_parts(
    tar: tarfile.TarFile, shard: Path
) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the parts of samples: key, suffix in lower case, and entry."""
    for entry in tar_entries(tar):
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            raise UserError(
                f"{shard} contains {entry.name[:80]!r}, which is not a plain file and is refused."
            )
        folder, slash, name = inside(entry.name.removeprefix("./"), shard).rpartition("/")
        key, dot, suffix = name.partition(".")
        if key and dot:  # neither hidden nor of no sample
            yield folder + slash + key, suffix.lower(), entry


def _tar_label(file: BinaryIO, entry: tarfile.TarInfo, json_key: str, where: str) -> Any:
    """Read a part that holds a label: an integer, a class name, or a field of JSON with either."""
    file.seek(entry.offset_data)
    try:
        if entry.size > MAX_LABEL:
            raise ValueError
        text = file.read(entry.size).decode().strip()
        return json.loads(text)[json_key] if json_key else _number_or_name(text)
    except (ValueError, LookupError, TypeError, RecursionError):
        what = f"JSON with the field {json_key!r}" if json_key else "text in UTF-8"
        raise UserError(
            f"{where} is not {what} of at most {MAX_LABEL} bytes; set split.label to the labels."
        ) from None


class HeaderOrEnd(tarfile.TarInfo):
    """A header or the end mark of a tar. tarfile takes anything else for the end as well."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "HeaderOrEnd":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError(f"no end mark, or a damaged header: {error}") from None
        # tarfile reads long headers whole, and the list of the parts of a sparse file.
        if header.type in LONG_HEADERS and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return header

    # Tarfile calls it, by this name alone.
    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file")


def tar_entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar that was opened with HeaderOrEnd.

    An entry that leads back is a ReadError: tarfile would read without end (CVE-2025-8194).
    """
    offset = 0
    while (entry := tar.next()) is not None:
        if entry.size < 0 or tar.offset <= offset:
            raise tarfile.ReadError("an entry leads back to an earlier one")
        if len(tar.pax_headers) > MAX_GLOBALS:
            raise tarfile.ReadError(f"more than {MAX_GLOBALS} global headers")
        offset = tar.offset
        yield entry
        tar.members.clear()  # type: ignore[attr-defined]  # a million take a gigabyte


def _parquet_samples(
    shard: Path, settings: SplitSection, _skipped: object, described: set[tuple[str, ...]]
) -> Iterator[Sample]:
    """Yield the images of a Parquet file in order. Without a column of labels they have none."""
    number = itertools.count()
    column = settings.label or "label"
    with pq.ParquetFile(shard) as file:
        images.image_column(file)
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it has more than {MAX_ROWS} rows")
        if settings.label and column not in file.schema_arrow.names:
            raise ValueError(f"it has no column {column!r} but {file.schema_arrow.names}")
        described.add(_described_classes(file, column))
        for group in range(file.num_row_groups):
            for row, label in enumerate(_column_of_labels(file, group, column)):
                yield str(next(number)), f"{group}+{row}", label


def _column_of_labels(file: Any, group: int, column: str) -> Iterator[Any]:
    if column not in file.schema_arrow.names:
        yield from itertools.repeat(None, file.metadata.row_group(group).num_rows)
        return
    # Numbers take little memory, however many they are. Other values are read one by one.
    are_numbers = pa.types.is_integer(file.schema_arrow.field(column).type)
    for labels in images.rows(file, group, column, LABELS_AT_ONCE if are_numbers else 1):
        yield from labels.to_pylist()


def _described_classes(file: Any, column: str) -> tuple[str, ...]:
    """Return the class names in label order that a Parquet file describes, if any."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        features = json.loads(file.schema_arrow.metadata[FEATURES])["info"]["features"]
        return TypeAdapter(tuple[str, ...]).validate_python(features[column]["names"])
    return ()


READERS: dict[str, Callable[[Path, SplitSection, Counter[str]], Listing]] = {
    **dict.fromkeys(TABLES, _read_table),
    "folders": _read_class_folders,
    **dict.fromkeys(SUFFIXES, _read_shards),
}
