"""Read a dataset's split: which images it has, where they lie, and what their labels are.

A split is listed by a file (CoOp JSON, a table, or one list per split), or follows from class
folders or from shards, which are files of thousands of images each: tars as WebDataset writes them,
`key.jpg` beside `key.cls` or `key.json`, or Parquet files as Hugging Face `datasets` writes them,
an image's bytes beside a label. Of shards, only headers and labels are read.

Letters: N images, C classes.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import logging
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

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
    image_files,
    inside,
    is_litter,
    is_utf8,
    subfolders,
)

log = logging.getLogger(__name__)
DEPTH = 3  # folders below a dataset's folder in which its parts are searched
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
CoopSplit = dict[str, list[tuple[str, Annotated[int, Field(ge=0)], str]]]


@dataclass(frozen=True, slots=True)
class Item:
    """An image of a split."""

    image_id: str  # path relative to the folder of images, or to a shard in it
    split: str
    label: int | None  # None where it is unknown
    member: str = ""  # its path in a shard, relative to the same folder; empty: a separate file

    @property
    def path(self) -> str:
        """Its path relative to the folder of images, as `latteclip.data.images` reads it."""
        return self.member or self.image_id


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
        split = READERS[settings.kind](root, settings)
        _check(split, settings.counts, root)
        return _images_folder(root, settings.images, split.items), split


def draw(split: Split, limit: int) -> Split:
    """Return at most `limit` images of each of train, val and test, evenly spread over its order.

    The order is that of class folders, lists or shards. No label is read.
    """
    rows = defaultdict[str, list[int]](list)
    for row, item in enumerate(split.items):
        rows[item.split].append(row)
    drawn = set[int]()
    for of_split in rows.values():
        n = min(limit, len(of_split))
        drawn.update(of_split[i * len(of_split) // n] for i in range(n))
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
    for folder in (root / name, *_nearby(root)):
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
    for folder in (root / Path(name).parent, *_nearby(root)):
        path = folder / Path(name).name
        if path.is_file():
            return path
    raise UserError(f"Split file {name} is neither in {root} nor in the folders below it.")


def _nearby(root: Path) -> Iterator[Path]:
    """Yield `root` and the folders below it, nearest first, down to DEPTH."""
    yield root
    for depth in range(1, DEPTH + 1):
        yield from sorted(root.glob("*/" * depth))


def _listed_classes(root: Path, settings: SplitSettings) -> list[str] | None:
    """Return the class names that a file lists, in label order, None where there is no file."""
    if settings.classes is None and not (root / CLASSES).is_file():
        return None
    path = _existing(root, settings.classes or CLASSES)
    names = list(_lines(path))
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise UserError(f"{path} lists the class {repeated[0]!r} twice.")
    return names


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file that are not empty, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8 text: {error}.") from None
    return (line.strip() for line in text.splitlines() if line.strip())


# --- files that list the images ------------------------------------------------------------------


def _read_coop(root: Path, settings: SplitSettings) -> Split:
    return read_coop(_existing(root, settings.file or "split.json"))


def read_coop(path: Path) -> Split:
    """Read a CoOp split: {"train": [[path, label, classname], ...], "val": ..., "test": ...}.

    Raises:
        UserError: it is not a valid split.
    """
    try:
        content = TypeAdapter(CoopSplit).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"Split file {path}: {place} {first['msg']}.") from None
    if not {"train", "test"} <= content.keys() <= set(SPLITS):
        raise UserError(f"Split file {path} must have the keys train and test, and perhaps val.")
    rows = [(split, *row) for split in SPLITS for row in content.get(split, [])]
    items = [Item(inside(image_id, path), split, label) for split, image_id, label, _ in rows]
    return Split(items, _in_label_order(((label, name) for *_, label, name in rows), path))


def _read_lists(root: Path, settings: SplitSettings) -> Split:
    """Read one list per split, of lines "<image> <class name>"."""
    names = _listed_classes(root, settings) or []
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for split, listed in settings.lists.items():
        path = _existing(root, listed)
        for number, line in enumerate(_lines(path), start=1):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise UserError(f"{path}, line {number}: class {name!r} is not listed.")
            items.append(Item(inside(image + settings.suffix, path), split, labels[name]))
    return Split(items, names)


def _read_csv(root: Path, settings: SplitSettings) -> Split:
    """Read a table with the columns path, and any of label, classname, split. A .tsv has tabs.

    An image with neither label nor classname is unlabelled. A label is a number where there are
    class names (a column, or a file of them), else it is the class name itself.
    """
    path = _existing(root, settings.file or "split.csv")
    rows = list(_csv_rows(path))
    names = _listed_classes(root, settings) or _csv_names(rows, path)
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        name = row["classname"] or row["label"]
        label = labels.get(name, _parse_label(row["label"])) if name else None
        if label is not None and label >= len(names):
            label = None
        if name and (label is None or row["classname"] not in ("", names[label])):
            raise UserError(f"{where}: class {name!r} is not among the class names.")
        item = Item(inside(row["path"], path), row["split"].lower(), label)
        if item.split not in ("", *SPLITS):
            raise UserError(f"{where}: split {item.split!r} is not one of {', '.join(SPLITS)}.")
        items.append(_drawn(item, settings.test_fraction))
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


def _csv_names(rows: Sequence[Mapping[str, str]], path: Path) -> list[str]:
    """Return the class names of a table, by their numbers where it has both."""
    both = [(row["label"], row["classname"]) for row in rows if row["label"] and row["classname"]]
    if both:
        return _in_label_order(((_parse_label(label), name) for label, name in both), path)
    names = sorted({row["classname"] or row["label"] for row in rows} - {""})
    if all(_parse_label(name) is not None for name in names):
        raise UserError(
            f"Split file {path} has no class names: add a column classname, or a file {CLASSES} "
            "with one name per line."
        )
    return names


def _parse_label(text: str) -> int | None:
    """Return a label as a number, None for any other text."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _in_label_order(labels: Iterable[tuple[int | None, str]], path: Path) -> list[str]:
    """Return class names by their labels."""
    names = dict[int | None, str]()
    for label, name in labels:
        if names.setdefault(label, name) != name:
            known = names[label]
            raise UserError(f"Split file {path}: label {label} is both {known!r} and {name!r}.")
    if missing := [label for label in range(len(names)) if label not in names]:
        raise UserError(
            f"Split file {path}: labels must run from 0 without a gap, but {missing[0]} is missing."
        )
    return [names[label] for label in range(len(names))]


# --- a split by hash -----------------------------------------------------------------------------


def _drawn(item: Item, test_fraction: float) -> Item:
    """Put an item without a split into train or test, by a hash of its path if it has a label."""
    if item.split:
        return item
    is_test = item.label is not None and _unit_interval(item.image_id) < test_fraction
    return replace(item, split="test" if is_test else "train")


def _unit_interval(image_id: str) -> float:
    """Return a number from 0 to 1 that depends on a path alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64


def _with_both_splits(items: list[Item]) -> list[Item]:
    """Move the image whose hash is nearest to the other split, where the hash left that empty."""
    splits = {item.split for item in items}
    if len(splits) > 1 or len(items) < 2:
        return items
    pick, other = (min, "test") if splits == {"train"} else (max, "train")
    moved = pick(items, key=lambda item: _unit_interval(item.image_id))
    return [replace(item, split=other) if item is moved else item for item in items]


# --- class folders -------------------------------------------------------------------------------


def _read_class_folders(root: Path, settings: SplitSettings) -> Split:
    """Read class folders: {train,val,test}/<class>/..., or <class>/... in the folder of images.

    A list of classes gives the names and their order, and folders are matched with it after
    clean-up. Otherwise the folders name the classes. Images outside of class folders are
    unlabelled. Without a test folder, a hash of its path decides which labelled images are for
    testing.
    """
    folder = root / settings.images
    parts = [split for split in SPLITS if (folder / split).is_dir()]
    if parts and not {"train", "test"} <= set(parts):
        raise UserError(f"{folder} has a folder {parts[0]} but not both of train and test.")
    places = {split: folder / split for split in parts} or {"": folder}
    class_folders = {split: subfolders(place) for split, place in places.items()}
    listed = _listed_classes(root, settings)
    names = listed or _folder_names(folder, class_folders)
    cleaned = clean_classnames(names, settings.classname_replace)
    labels = {name: label for label, name in enumerate(cleaned)}
    items, skipped = [], Counter[str]()
    for split, place in places.items():
        groups: list[tuple[int | None, list[Path]]]
        groups = [(None, image_files(place, skipped, deep=False))]
        for class_folder in class_folders[split]:
            label = labels.get(clean_classname(class_folder.name, settings.classname_replace))
            files = image_files(class_folder, skipped, deep=True)
            if label is None and split == "test" and files:
                raise UserError(f"Folder {class_folder} is not a class of {CLASSES}: {cleaned}.")
            if listed is None and not files and split != "test":
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(
                    f"Class folder {class_folder} holds no image ({suffixes}); add some or remove "
                    "the folder."
                )
            groups.append((label, files))
        for label, files in groups:
            for file in files:
                image_id = inside(file.relative_to(folder).as_posix(), folder)
                items.append(_drawn(Item(image_id, split, label), settings.test_fraction))
    unlabelled = Counter(item.split for item in items if item.label is None)
    if unlabelled:
        log.info("%s: unlabelled images lie outside class folders: %s.", folder, dict(unlabelled))
    elif not parts:
        items = _with_both_splits(items)
    return Split(items, names, dict(skipped.most_common()))


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


def _read_shards(root: Path, settings: SplitSettings) -> Split:
    """Read the images of all shards, in the order of the shards' paths.

    Where no name of a shard tells its split, a hash of the image_id decides. Without a list of
    classes, Parquet files describe the classes, or the labels name them.
    """
    folder = root / settings.images
    if settings.lists:
        found = _listed_shards(folder, settings.lists)
    else:
        found = _named_shards(folder, SUFFIXES[settings.kind])
    is_parquet = settings.kind == "parquet"
    skipped = Counter[str]()
    rows: list[tuple[str, str, str, Label]] = []
    for shard, split in found:
        name = inside(shard.relative_to(folder).as_posix(), folder)
        samples = _parquet_samples if is_parquet else _tar_samples
        for sample, place, label in samples(shard, settings, skipped):
            rows.append((f"{name}/{sample}", f"{name}#{place}", split, label))
    names = _listed_classes(root, settings)
    if names is None and is_parquet:
        names = _described_classes([shard for shard, _ in found], settings.label or PARQUET_LABEL)
    names = names or sorted({label for *_, label in rows if isinstance(label, str)})
    if not names:
        raise UserError(
            f"The shards in {folder} do not name their classes: write the class names into "
            f"{root / CLASSES}, one per line in label order, or set split.label to where labels "
            "are."
        )
    labels = {name: number for number, name in enumerate(names)}
    items = []
    for image_id, place, split, value in rows:
        label = labels.get(value, -1) if isinstance(value, str) else value
        if label is not None and not 0 <= label < len(names):
            raise UserError(
                f"{image_id} has the label {str(value)[:80]!r}, which is none of the {len(names)} "
                "classes; complete the class names, or correct split.label."
            )
        items.append(_drawn(Item(image_id, split, label, place), settings.test_fraction))
    return Split(items, names, dict(skipped.most_common()))


def _listed_shards(folder: Path, lists: Mapping[str, str]) -> list[tuple[Path, str]]:
    """Return the shards that fit the glob of each split, with the split."""
    found = []
    for split in filter(lists.__contains__, SPLITS):
        try:
            shards = sorted(filter(Path.is_file, folder.glob(lists[split])))
        except (ValueError, NotImplementedError):  # it is no glob, or not a relative one
            shards = []
        if not shards:
            raise UserError(f"No shard in {folder} fits {lists[split]!r}, split.lists.{split}.")
        found += [(shard, split) for shard in shards]
    return found


def _named_shards(folder: Path, suffix: str) -> list[tuple[Path, str]]:
    """Return all shards, each with the split that a word of its path names, or ""."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix.lower() == suffix and path.is_file() and not any(map(is_litter, name.parts)):
            words: list[str] = _WORD.findall(name.as_posix())
            found[path] = _SPLIT_OF.get(words[-1].lower(), "val") if words else ""
    splits = set(found.values())
    if not found:
        raise UserError(f"{folder} holds no shards (*{suffix}); split.images names their folder.")
    if splits != {""} and not {"train", "test"} <= splits <= set(SPLITS):
        examples = {split: path.name for path, split in found.items()}
        named = ", ".join(f"{name}: {split or 'nothing'}" for split, name in examples.items())
        raise UserError(
            f"The names of the shards in {folder} must tell of all whether they are train, val or "
            f"test, and name both train and test, or tell nothing ({named}); split.lists of the "
            "dataset can name the shards of each split."
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


class _Part(NamedTuple):
    """A file in a tar: a part of the sample with its key."""

    key: str
    suffix: str
    place: str
    label: bytes | None  # the content of a part that holds a label


def _tar_samples(shard: Path, settings: SplitSettings, skipped: Counter[str]) -> Iterator[Sample]:
    """Yield the images of a tar in order, and count samples without an image by suffix."""
    suffix, _, json_key = (settings.label or TAR_LABEL).partition(":")
    suffix = suffix.lower()  # as those of the files are read
    wanted = {f".{settings.image.lower()}"} if settings.image else IMAGE_SUFFIXES
    for key, group in itertools.groupby(_tar_parts(shard, suffix), lambda part: part.key):
        parts = list(group)
        found = [part for part in parts if f".{part.suffix}" in wanted]
        if not found:
            skipped[f".{parts[0].suffix}"] += 1
            continue
        if len(found) > 1:
            suffixes = ", ".join(part.suffix for part in found)
            raise UserError(
                f"{shard}: the sample {key!r} has {len(found)} images ({suffixes}); split.image "
                "of the dataset says which one counts."
            )
        labels = [part.label for part in parts if part.label is not None]
        label = _tar_label(labels[0], json_key, f"{shard}: {key}.{suffix}") if labels else None
        yield f"{key}.{found[0].suffix}", found[0].place, label


def _tar_parts(shard: Path, label_suffix: str) -> Iterator[_Part]:
    """Yield the files of a tar that belong to a sample, with the content of labels."""
    with (
        _explained(shard, "a whole tar without compression"),
        shard.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=HeaderOrEnd) as tar,
    ):
        for entry in tar_entries(tar):
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                raise UserError(f"{shard} holds {entry.name[:80]!r}, no plain file: refused.")
            folder, slash, name = inside(entry.name.removeprefix("./"), shard).rpartition("/")
            key, dot, suffix = name.partition(".")
            if not key or not dot:  # hidden, or of no sample
                continue
            content = None
            if suffix.lower() == label_suffix:
                file.seek(entry.offset_data)
                content = file.read(min(entry.size, MAX_LABEL + 1))
            place = f"{entry.offset_data}+{entry.size}"
            yield _Part(folder + slash + key, suffix.lower(), place, content)


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


def _tar_label(content: bytes, json_key: str, where: str) -> Label:
    """Parse a part that holds a label: an integer, a class name, or a field of JSON with either."""
    if len(content) > MAX_LABEL:
        raise UserError(f"{where} has more than {MAX_LABEL} bytes, and is no label.")
    try:
        text = content.decode("utf-8").strip()
        value = json.loads(text)[json_key] if json_key else text
    except (ValueError, LookupError, TypeError, RecursionError):
        what = f"JSON with the field {json_key!r}" if json_key else "text in UTF-8"
        raise UserError(f"{where} is not {what}; set split.label to where labels are.") from None
    if not json_key and re.fullmatch("-?[0-9]{1,18}", text):
        value = int(text)
    return _checked_label(value, where)


def _parquet_samples(
    shard: Path, settings: SplitSettings, _skipped: Counter[str]
) -> Iterator[Sample]:
    """Yield the images of a Parquet file in order. Without a column of labels they have none."""
    number = 0
    with _opened(shard) as file:
        images.image_column(file)
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it has more than {MAX_ROWS} rows")
        for group in range(file.num_row_groups):
            for row, value in enumerate(_column_of_labels(file, group, settings.label)):
                label = _checked_label(value, f"{shard}: the label of row {number}")
                yield str(number), f"{group}+{row}", label
                number += 1


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


def _described_classes(shards: Sequence[Path], column: str) -> list[str] | None:
    """Return the class names in label order that Parquet files describe, the same in all."""
    described: list[list[str] | None] = []
    for shard in shards:
        names = None
        with _opened(shard) as file, contextlib.suppress(KeyError, TypeError, ValueError):
            features = json.loads(file.schema_arrow.metadata[FEATURES])["info"]["features"]
            names = TypeAdapter(list[str]).validate_python(features[column]["names"])
        if names != (described or [names])[0]:
            raise UserError(
                f"{shards[0]} and {shard} describe different classes; name them in split.classes."
            )
        if names and len(set(names)) != len(names):
            raise UserError(f"{shard} names a class twice; name the classes in split.classes.")
        described.append(names)
    return described[0]


READERS: dict[str, Callable[[Path, SplitSettings], Split]] = {
    "coop": _read_coop,
    "csv": _read_csv,
    "lists": _read_lists,
    "folders": _read_class_folders,
    "webdataset": _read_shards,
    "parquet": _read_shards,
}
