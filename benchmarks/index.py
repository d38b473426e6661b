"""Time the index: images decoded per second, again with new images, and from shards.

python benchmarks/index.py [--images 4000] [--threads 2]

The forms hold the same images; "in random order" decodes single images, as training does, and one
Parquet row group has 100.
"""

import argparse
import io
import logging
import random
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from latteclip.config.sections.split import SplitSection
from latteclip.core import tables
from latteclip.data.images import open_rgb
from latteclip.data.index_images import index_images

SIZE = (500, 375)  # pixels, as most photographs of the ten datasets
DISTINCT = 40  # different images; the others are links to them
NEW = 0.01  # share of images that are added before the second run
GROUP = 100  # rows of a row group, as the hub's own are for images
SHARD = 1000  # images
KINDS = {"folders": "folders", "tars": "webdataset", "parquet": "parquet"}


def make_folders(root: Path, first: int, last: int) -> None:
    """Write class folders with JPEGs of smooth noise, which compress like photographs."""
    rng = np.random.default_rng(0)
    for number in range(first, last):
        path = root / f"class{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(
                path, quality=90
            )
        else:
            path.hardlink_to(root / f"class{number % 10}" / f"{number % DISTINCT:06d}.jpg")


def make_shards(folders: Path, tars: Path, parquet: Path) -> None:
    """Write the same images as tars of WebDataset and as Parquet files of `datasets`."""
    files = sorted(folders.rglob("*.jpg"), key=lambda path: path.name)
    for place in (tars, parquet):
        place.mkdir()
    (tars / "classes.txt").write_text("\n".join(f"class{label}" for label in range(10)))
    for start in range(0, len(files), SHARD):
        part = files[start : start + SHARD]
        with tarfile.open(tars / f"{start:06d}.tar", "w") as tar:
            for file in part:
                add(tar, file.name, file.read_bytes())
                add(tar, f"{file.stem}.cls", file.parent.name[-1:].encode())
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in part]
        columns = {"image": images, "label": [file.parent.name for file in part]}
        pq.write_table(pa.table(columns), parquet / f"{start:06d}.parquet", GROUP)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def index(root: Path, kind: str, output: Path, threads: int) -> float:
    """Index a folder, and return the seconds. The log line of the stage has the rate."""
    before = time.perf_counter()
    names = ("images.parquet", "corrupt.csv", "fingerprints.parquet")
    outputs = [str(output / name) for name in names]
    index_images(
        str(root), SplitSection.model_validate({"kind": kind}), *outputs, threads=threads
    )
    return time.perf_counter() - before


def decode_in_random_order(output: Path, n: int) -> float:
    """Decode n images of an index, and return the CPU seconds."""
    table = tables.read(output / "images.parquet", tables.IMAGES, ["path"])
    paths = random.Random(0).sample(table["path"].to_pylist(), n)
    before = time.process_time()
    for path in paths:
        open_rgb(path)
    return time.process_time() - before


def main() -> None:
    """Index folders twice, then each form of shards, and read all in random order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        roots = {form: Path(folder, form) for form in KINDS}
        made = {form: Path(folder, "results", form) for form in KINDS}
        n_new = round(NEW * args.images)
        make_folders(roots["folders"], 0, args.images)
        first = index(roots["folders"], "folders", made["folders"], args.threads)
        make_folders(roots["folders"], args.images, args.images + n_new)
        second = index(roots["folders"], "folders", made["folders"], args.threads)
        print(
            f"Took {first:.1f} s, then with {n_new} new images {second:.1f}: {second / first:.3f}"
        )
        make_shards(*roots.values())
        for form in ("tars", "parquet"):
            taken = index(roots[form], KINDS[form], made[form], args.threads)
            print(f"Took from {form}: {taken:.1f} s, {taken / first:.2f} of the folders'")
        decoded = {
            form: decode_in_random_order(made[form], args.images // 10) for form in KINDS
        }
        said = ", ".join(
            f"{form} {one / decoded['folders']:.2f}" for form, one in decoded.items()
        )
        print(f"CPU of decoding in random order, folders 1: {said}")
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in whose) / 1024
    print(f"largest process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
