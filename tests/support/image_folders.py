"""Folders of small images, splits of them, and the demo's textures as separate files."""

import csv
import json

import numpy as np
from generate_textures import generate
from PIL import Image
from support import shards
from support.tiny import write_pictures

from latteclip.core import tables
from latteclip.core.tables import IndexMetadata
from latteclip.data import index_images
from latteclip.data.splits import IndexSettings


def images(root, *names, content=None):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shards.picture(0) if content is None else content)


def folders(root, classes=("cat", "dog"), n=10):
    images(root, *(f"{name}/{i}.jpg" for name in classes for i in range(n)))
    return root


def coop(root, train, test):
    (root / "split.json").write_text(json.dumps({"train": train, "val": [], "test": test}))


def index(root, tmp_path, threads=1, limit=None, **settings):
    """Index a folder; its rows, class names and broken images."""
    output, corrupt = tmp_path / "out" / "images.parquet", tmp_path / "out" / "corrupt.csv"
    settings = IndexSettings(**({"kind": "folders"} | settings))
    outputs = [str(output), str(corrupt)]
    index_images.index_images(
        *(str(root), settings, *outputs), threads=threads, limit=limit
    )
    rows = tables.read(output).to_pylist()
    classnames = tables.read_metadata(output, IndexMetadata).classnames
    with corrupt.open(newline="") as file:
        return rows, classnames, list(csv.DictReader(file))


def class_folders(root, n):
    for number, name in enumerate(("red dots", "lines")):
        write_pictures(root / name, n, seed=number, size=(64, 64))
    return root


def picture(seed, size=(160, 120)):
    """Coarse random patches: none is like that of another seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_textures(folder, n, *, gap, seed):
    """Write n textures below folders of their classes; the paths, by class."""
    paths = []
    for number, (image, named) in enumerate(zip(*generate(n, gap, seed), strict=True)):
        path = folder / named.classname / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        paths.append(str(path))
    return sorted(paths)
