"""Time the index: images decoded per second, and the memory of the largest process.

python benchmarks/index.py [--images 4000] [--threads 2]
"""

import argparse
import logging
import resource
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from latteclip.data.index_images import index_images
from latteclip.data.splits import SplitSettings

SIZE = (500, 375)  # pixels, as most photographs of the ten datasets
DISTINCT = 40  # different images; the others are links to them


def make_folders(root: Path, n: int) -> None:
    """Class folders with n JPEGs of smooth noise, which compress like photographs."""
    rng = np.random.default_rng(0)
    for number in range(n):
        path = root / f"class{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            path.hardlink_to(root / f"class{number % 10}" / f"{number % DISTINCT:06d}.jpg")


def main() -> None:
    """Index a folder; the rate is in the log line of the stage itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make_folders(root, args.images)
        index_images(
            str(root),
            SplitSettings(kind="folders"),
            f"{folder}/images.parquet",
            f"{folder}/corrupt.csv",
            f"{folder}/fingerprints.parquet",
            threads=args.threads,
        )
    usage = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in usage)
    print(f"largest process: {peak / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
