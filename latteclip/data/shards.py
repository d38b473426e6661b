"""Splits read from shards, files that hold thousands of images each: tars or Parquet files.

Letters: C classes.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from latteclip.core.errors import UserError
from latteclip.data import parquet_shards, tar_shards
from latteclip.data.folder_files import CLASSES, is_litter
from latteclip.data.split_files import (
    SPLITS,
    Item,
    Split,
    check_unique,
    hashed_split,
    inside,
    read_names,
)
from latteclip.data.tar_shards import Label, Sample

SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}  # of shards, by kind of split
# What says of which split a shard is: a word of its path.
_WORD = re.compile(
    r"(?<![a-z0-9])(train|training|val|valid|validation|dev|test)(?=[^a-z]|$)", re.IGNORECASE
)
_SPLIT_OF = {"train": "train", "training": "train", "test": "test"}  # all others: val


def read_shards(
    root: Path,
    kind: str,
    *,
    lists: Mapping[str, str],
    image: str | None,
    label: str | None,
    classes: Path | None,
    test_fraction: float,
) -> Split:
    """The images of all shards, in the order of the shards' paths.

    Without a word for a split in the paths of shards, a labelled image belongs to the test split by
    a hash of its image_id, and all others are for training.

    Args:
        root: the folder of the shards.
        kind: of SUFFIXES.
        lists: a glob of the shards of each split; empty: all shards, by the words in their paths.
        image: see `tar_shards.samples`.
        label: where labels are: a part of a tar's samples, or a column.
        classes: class names, one per line, in label order; None: the shards name their classes.
        test_fraction: share of test images where nothing says which they are.

    Raises:
        UserError: there are no shards, one is damaged or unsafe, or labels and names do not fit.
    """
    shards = _listed(root, lists) if lists else _by_words(root, SUFFIXES[kind])
    skipped = Counter[str]()
    rows: list[tuple[str, str, str, Label]] = []
    for shard, split in shards:
        name = inside(shard.relative_to(root).as_posix(), root)
        found = (
            tar_shards.samples(shard, image, label, skipped)
            if kind == "webdataset"
            else parquet_shards.samples(shard, label)
        )
        rows += _rows(name, split, found)
    if classes:
        names = read_names(classes)
    else:
        told = _told_names([s for s, _ in shards], label) if kind == "parquet" else None
        names = told or _names(rows, root)
    labels = {name: number for number, name in enumerate(names)}
    items = []
    for image_id, place, split, value in rows:
        number = _number(value, labels, image_id)
        own_split = split or hashed_split(image_id, number, test_fraction)
        items.append(Item(image_id, own_split, number, place))
    check_unique(items, root)
    return Split(items, names, dict(skipped.most_common()))


def _rows(shard: str, split: str, found: Iterator[Sample]) -> Iterator[tuple[str, str, str, Label]]:
    """Of each image its image_id, its path, its split, and its label as it is written."""
    for sample in found:
        label = sys.intern(sample.label) if isinstance(sample.label, str) else sample.label
        yield f"{shard}/{sample.name}", f"{shard}#{sample.place}", split, label


def _listed(root: Path, lists: Mapping[str, str]) -> list[tuple[Path, str]]:
    """The shards that globs name for each split."""
    found = {}
    for split, pattern in lists.items():
        try:
            shards = sorted(filter(Path.is_file, root.glob(pattern)))
        except (ValueError, NotImplementedError) as error:
            raise UserError(
                f"split.lists.{split} is {pattern!r}, which is no glob relative to {root} "
                f"({error}); correct it."
            ) from None
        if not shards:
            raise UserError(f"No shard in {root} fits {pattern!r}, split.lists.{split}.")
        found[split] = shards
    return [(shard, split) for split in SPLITS for shard in found.get(split, [])]


def _by_words(root: Path, suffix: str) -> list[tuple[Path, str]]:
    """All shards below a folder, with the split that a word of their path names, or ""."""
    found = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() == suffix
        and path.is_file()
        and not any(map(is_litter, path.relative_to(root).parts))
    )
    if not found:
        raise UserError(f"{root} holds no shards (*{suffix}); split.images names their folder.")
    splits = [_split_of(path.relative_to(root).as_posix()) for path in found]
    if any(splits) and not {"train", "test"} <= set(splits) <= set(SPLITS):
        shown = ", ".join(f"{path.name}: {split}" for path, split in _firsts(found, splits))
        raise UserError(
            f"The names of the shards in {root} must say of all whether they are train, val or "
            f"test, and name both train and test, or say nothing ({shown}); split.lists of the "
            "dataset can name the shards of each split."
        )
    return list(zip(found, splits, strict=True))


def _firsts(found: Sequence[Path], splits: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The first shard of each split."""
    for split in sorted(set(splits)):
        yield found[splits.index(split)], split or "nothing"


def _split_of(name: str) -> str:
    words: list[str] = _WORD.findall(name)
    return _SPLIT_OF.get(words[-1].lower(), "val") if words else ""


def _told_names(shards: Sequence[Path], label: str | None) -> list[str] | None:
    """The class names that Parquet files tell, which must be the same in all."""
    told = {shard: parquet_shards.classnames(shard, label) for shard in shards}
    first = told[shards[0]]
    for shard, names in told.items():
        if names != first:
            raise UserError(
                f"{shards[0]} and {shard} tell of different classes; name them in split.classes."
            )
    if first and len(set(first)) != len(first):
        raise UserError(f"{shards[0]} names a class twice; name the classes in split.classes.")
    return first


def _names(rows: Sequence[tuple[str, str, str, Label]], root: Path) -> list[str]:
    """The class names among the labels, sorted."""
    names = sorted({label for *_, label in rows if isinstance(label, str)})
    if not names:
        raise UserError(
            f"The shards in {root} do not name their classes: write the class names into "
            f"{root / CLASSES}, one per line in label order, or say with split.label where labels "
            "are."
        )
    return names


def _number(value: Label, labels: Mapping[str, int], image_id: str) -> int | None:
    """The number of a label; UserError for what is no class."""
    if value is None:
        return None
    known = labels.get(value) if isinstance(value, str) else value
    if known is None or not 0 <= known < len(labels):
        raise UserError(
            f"{image_id} has the label {str(value)[:80]!r}, which is none of the {len(labels)} "
            "classes; complete the class names, or correct split.label."
        )
    return known
