"""From a dataset's folder to the image index: CoOp split JSON or class folders.

Letters: N images, C classes.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip import tables
from latteclip.errors import UserError
from latteclip.images import open_rgb
from latteclip.progress import Progress
from latteclip.prompts import clean_classnames

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class SplitSettings:
    """How a dataset's folder is read."""

    kind: str  # coop or folders
    file: str | None = None  # the split JSON, relative to the dataset's folder
    images: str = "."  # the folder to which the split's paths are relative
    test_fraction: float = 0.3  # of class folders that have no train and test of their own
    classname_replace: dict[str, str] = field(default_factory=lambda: {"_": " "})


@dataclass(frozen=True)
class Item:
    """One image of a split."""

    image_id: str  # path relative to the folder of images
    split: str
    label: int


def index_images(folder: str, settings: SplitSettings, output: str, *, threads: int) -> None:
    """Write the IMAGES table of a dataset: every image decoded once, class names in its metadata.

    Raises:
        UserError: the split does not fit its schema or the folder, or an image cannot be decoded.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"Dataset folder {folder} does not exist.")
    images = root / settings.images
    if settings.kind == "coop":
        items, names = read_coop(root / (settings.file or "split.json"))
    else:
        items, names = read_class_folders(images, settings.test_fraction)
    classnames = clean_classnames(names, settings.classname_replace)
    paths = [os.path.normpath(images / item.image_id) for item in items]
    sizes = _sizes(paths, threads)
    tables.write(
        output,
        {
            "image_id": [item.image_id for item in items],
            "path": paths,
            "split": [item.split for item in items],
            "label": [item.label for item in items],
            "classname": [classnames[item.label] for item in items],
            "width": [width for width, _ in sizes],
            "height": [height for _, height in sizes],
        },
        tables.IMAGES,
        {"classnames": classnames},
    )
    counts = Counter(item.split for item in items)
    log.info("Indexed %d images of %d classes: %s.", len(items), len(classnames), dict(counts))


def read_coop(path: Path) -> tuple[list[Item], list[str]]:
    """A CoOp split JSON: {"train": [[path, label, classname], ...], "val": ..., "test": ...}.

    Returns:
        The items and the C class names in label order.

    Raises:
        UserError: anything that makes it no valid split, in one sentence.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"Split file {path} does not exist.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"Split file {path} is no JSON: {error}.") from None
    if not isinstance(content, dict) or not {"train", "test"} <= set(content) <= set(SPLITS):
        raise UserError(f"Split file {path} must be an object with the keys train, test and val.")
    items, names = [], dict[int, str]()
    for split in SPLITS:
        rows = content.get(split, [])
        if not isinstance(rows, list):
            raise UserError(f"Split file {path}: {split} must be a list.")
        for row in rows:
            item, name = _coop_item(row, split, path)
            if names.setdefault(item.label, name) != name:
                raise UserError(
                    f"Split file {path}: label {item.label} is both {names[item.label]!r} "
                    f"and {name!r}."
                )
            items.append(item)
    if sorted(names) != list(range(len(names))):
        raise UserError(
            f"Split file {path}: labels must run from 0 without a gap: {sorted(names)}."
        )
    _check_unique(items, path)
    return items, [names[label] for label in range(len(names))]


def _coop_item(row: Any, split: str, path: Path) -> tuple[Item, str]:
    match row:
        case [str(image_id), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
            if os.path.isabs(image_id) or ".." in Path(image_id).parts:
                raise UserError(f"Split file {path}: {image_id!r} leads out of the image folder.")
            return Item(image_id, split, label), name
    raise UserError(f"Split file {path}: {split} holds {row!r}, not [path, label, classname].")


def _check_unique(items: Sequence[Item], path: Path) -> None:
    repeated = [i for i, n in Counter(item.image_id for item in items).items() if n > 1]
    if repeated:
        raise UserError(f"{path} lists {len(repeated)} images twice, the first {repeated[0]!r}.")


def read_class_folders(root: Path, test_fraction: float) -> tuple[list[Item], list[str]]:
    """Class folders: root/{train,val,test}/<class>/..., or root/<class>/... .

    Without a test folder, an image belongs to the test split by a hash of its path: the same file
    is in the same split whatever else the folder holds.

    Returns:
        The items, sorted by path, and the C folder names, sorted: their order is the label order.
    """
    parts = [split for split in SPLITS if (root / split).is_dir()]
    if parts and not {"train", "test"} <= set(parts):
        raise UserError(f"{root} has a folder {parts[0]} but not both of train and test.")
    places = [(split, root / split) for split in parts] or [("", root)]
    names = sorted({f.name for _, place in places for f in place.iterdir() if f.is_dir()})
    if not names:
        raise UserError(f"{root} holds no class folders; put each class's images in one.")
    items = []
    for split, place in places:
        for label, name in enumerate(names):
            files = _image_files(place / name)
            if not files and split in ("", "train"):
                raise UserError(
                    f"Class folder {place / name} holds no image "
                    f"({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove the folder."
                )
            for file in files:
                image_id = file.relative_to(root).as_posix()
                items.append(Item(image_id, split or _hashed_split(image_id, test_fraction), label))
    for split in ("train", "test"):
        if not any(item.split == split for item in items):
            raise UserError(f"{root} leaves no image for the {split} split.")
    return items, names


def _image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)


def _hashed_split(image_id: str, test_fraction: float) -> str:
    place = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test_fraction else "train"


def _size(path: str) -> tuple[int, int]:
    return open_rgb(path).size


def _sizes(paths: Sequence[str], threads: int) -> list[tuple[int, int]]:
    """Width and height of every image, decoded whole."""
    progress = Progress(len(paths), "images")
    sizes = []
    with ProcessPoolExecutor(threads) as pool:
        for size in pool.map(_size, paths, chunksize=64):
            sizes.append(size)
            progress.add(1)
    return sizes
