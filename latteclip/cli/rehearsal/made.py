"""Pictures and tables that a rehearsal works on where a run would have its dataset's.

Letters: N training images, C classes.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from latteclip.config import estimate
from latteclip.config.configuration import Configuration
from latteclip.core import tables
from latteclip.data.images import open_rgb
from latteclip.demo.generate_textures import TextureSettings, generate_textures
from latteclip.train.data import TrainingFiles

SIZE, GRAIN = (500, 375), (60, 45)  # of a made photograph and of what it is scaled up from, pixels
CLASSES = 100  # where nobody knows yet how many there are
WORDS = (
    *("a", "the", "of", "with", "and", "rough", "smooth", "dark", "bright", "large", "small"),
    *("blue", "red", "striped", "woven", "pattern", "surface", "lines", "dots", "fabric"),
)
CAPTION_WORDS = 17


def pictures(configuration: Configuration, dataset: str, folder: Path, n: int) -> list[str]:
    """At most n image files: the dataset's own where it is indexed, or else made in `folder`."""
    index = Path(estimate.INDEX.format(dataset=dataset))
    if index.is_file():
        table, _ = tables.read_unlabelled(index, training=True)
        paths = table["path"].to_pylist()
        return [str(path) for path in paths[:: max(1, len(paths) // n)][:n]]
    textures = configuration.dataset(dataset)["source"].get("textures")
    if textures:
        generate_textures(TextureSettings(**{**textures, "train": n, "test": 1}), folder)
        return sorted(map(str, folder.rglob("*.png")))[:n]
    folder.mkdir()
    return [_photograph(folder / f"{number}.jpg", number) for number in range(n)]


def _photograph(path: Path, seed: int) -> str:
    """A JPEG of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (*GRAIN[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).resize(SIZE).save(path, quality=90)
    return str(path)


def training_files(paths: list[str], n: int, classes: int | None, folder: Path) -> TrainingFiles:
    """What a training of N images reads: those at `paths` again and again, with random captions.

    Args:
        paths: image files.
        n: rows of the tables.
        classes: C; None: some number.
        folder: an existing one, for the tables.
    """
    c = classes or CLASSES
    sizes = [open_rgb(path).size for path in paths]
    ids = [f"{number:07d}" for number in range(n)]
    labels = [number % c for number in range(n)]
    names = [f"kind {number}" for number in range(c)]
    files = TrainingFiles(
        *(str(folder / f"{name}.parquet") for name in ("images", "labels", "captions", "groups"))
    )
    tables.write(
        files.images,
        {
            "image_id": ids,
            "path": [paths[number % len(paths)] for number in range(n)],
            "split": ["train"] * n,
            "label": labels,
            "classname": [names[label] for label in labels],
            "width": [sizes[number % len(paths)][0] for number in range(n)],
            "height": [sizes[number % len(paths)][1] for number in range(n)],
        },
        tables.IMAGES,
        {"classnames": names},
    )
    labelled = {"image_id": ids, "split": ["train"] * n, "pseudo_label": labels}
    _write(files.pseudo_labels, labelled, tables.PSEUDO_LABELS)
    rng = random.Random(0)
    for path in (files.image_captions, files.group_captions):
        texts = [" ".join(rng.choices(WORDS, k=CAPTION_WORDS)) for _ in ids]
        asked = {"id": ids, "members": [[name] for name in ids], "caption": texts}
        _write(str(path), asked, tables.CAPTIONS)
    return files


def _write(path: str, columns: Mapping[str, Any], schema: pa.Schema) -> None:
    """A table; the columns that are not given are of nulls."""
    n = len(next(iter(columns.values())))
    whole = {column.name: columns.get(column.name, pa.nulls(n, column.type)) for column in schema}
    tables.write(path, whole, schema)
