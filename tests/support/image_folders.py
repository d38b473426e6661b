"""Folders of small images, and splits of them."""

import csv
import json

from support.tiny import SHARED
from support.web import jpeg

from latteclip.core import tables
from latteclip.data import index_images
from latteclip.data.splits import SplitSettings

COOP_SPLITS = SHARED / "data" / "coop_splits"


def images(root, *names, content=None):
    """Write small JPEGs."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg() if content is None else content)


def folders(root, classes=("cat", "dog"), n=10):
    images(root, *(f"{name}/{i}.jpg" for name in classes for i in range(n)))
    return root


def coop(root, train, test, name="split.json"):
    (root / name).write_text(json.dumps({"train": train, "val": [], "test": test}))


def index(root, tmp_path, threads=1, folder_state=None, **settings):
    """Index a folder; its rows, class names and broken images."""
    output, corrupt = tmp_path / "out" / "images.parquet", tmp_path / "out" / "corrupt.csv"
    settings = SplitSettings(**({"kind": "folders"} | settings))
    outputs = [str(output), str(corrupt), str(tmp_path / "out" / "fingerprints.parquet")]
    index_images.index_images(
        *(str(root), settings, *outputs),
        threads=threads,
        folder_state=folder_state and folder_state[0],
        folder_files_output=folder_state and folder_state[1],
    )
    table, metadata = tables.read(output, tables.IMAGES)
    with corrupt.open(newline="") as file:
        return table.to_pylist(), metadata["classnames"], list(csv.DictReader(file))
