"""Splits read from folders: one folder per class, optionally below train, val and test.

Letters: N images, C classes.
"""

import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from latteclip.core.errors import UserError
from latteclip.core.paths import readable
from latteclip.core.prompts import clean_classname, clean_classnames
from latteclip.data.folder_files import CLASSES, IMAGE_SUFFIXES, is_litter
from latteclip.data.split_files import (
    SPLITS,
    Item,
    Split,
    hashed_split,
    inside,
    read_names,
    with_both_splits,
)

log = logging.getLogger(__name__)
_SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")
OTHER = "other"  # in place of a suffix that is none, or hardly one


def read_class_folders(
    root: Path, classes: Path | None, test_fraction: float, replace: Mapping[str, str]
) -> Split:
    """Class folders: root/{train,val,test}/<class>/..., or root/<class>/... .

    Images that lie in no class folder are unlabelled. Without a test folder, a labelled image
    belongs to the test split by a hash of its path, where it stays whatever else the folder holds,
    and all others are for training. Where that leaves a split empty, one image moves. Files that
    are no images by their suffix are counted.

    Args:
        root: the folder.
        classes: class names, one per line, in label order; folders of `root` are matched with them
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
    items, skipped = [], Counter[str]()
    for split, place in places:
        files = _labelled_files(place, split, labels, replace, skipped, strict=classes is None)
        for label, file in files:
            image_id = inside(file.relative_to(root).as_posix(), root)
            own_split = split or hashed_split(image_id, label, test_fraction)
            items.append(Item(image_id, own_split, label))
    if not parts and all(item.label is not None for item in items):
        items = with_both_splits(items)
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
    replace: Mapping[str, str],
    skipped: Counter[str],
    *,
    strict: bool,
) -> Iterator[tuple[int | None, Path]]:
    """Images of one split with their labels, None outside of class folders; sorted by path.

    Other files are counted in `skipped`.
    """
    for file in image_files(place, skipped, deep=False):
        yield None, file
    seen = dict[int, Path]()
    for folder in subfolders(place):
        label = labels.get(clean_classname(folder.name, replace))
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


def subfolders(place: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones and litter."""
    with readable():
        return sorted(f for f in place.iterdir() if f.is_dir() and not is_litter(f.name))


def image_files(
    folder: str | Path, skipped: Counter[str] | None = None, *, deep: bool
) -> list[Path]:
    """Image files in a folder, or in all folders below it as well, sorted by path.

    Hidden ones do not count, nor does litter.

    Args:
        folder: where to look.
        skipped: counts the other files but classes.txt, by suffix in lower case, or as OTHER.
        deep: whether folders below count.

    Raises:
        UserError: a folder cannot be read.
    """
    found = []
    with readable():
        for place, below, files in os.walk(folder, onerror=_stop):
            below[:] = itertools.filterfalse(is_litter, below) if deep else []
            for name in itertools.filterfalse(is_litter, files):
                suffix = os.path.splitext(name)[1].lower()
                if suffix in IMAGE_SUFFIXES:
                    found.append(Path(place, name))
                elif skipped is not None and name != CLASSES:
                    skipped[suffix if _SUFFIX.fullmatch(suffix) else OTHER] += 1
    return sorted(found)


def _stop(error: OSError) -> None:
    """Where `os.walk` would pass over a folder that cannot be read."""
    raise error
