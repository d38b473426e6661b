"""Peak memory of this machine while `encode_images` runs as beside a GPU: by worker processes.

    python benchmarks/host_memory.py [--workers 16] [--images 320] [--batch-size 256] [MODEL ...]

Models have real shapes and random weights, pictures 12 megapixels. Processes load batches as beside
a GPU (`loader.by_processes`). The CPU takes the place of the card, so the model encodes ENCODED
images of each batch: the others' activations would be on the card. Memory is the sum of all
processes, pages that they share counted once (PSS), and of /dev/shm, several times a second.
"""

import argparse
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import psutil
import timm
import torch
from PIL import Image

from latteclip.config import job_resources
from latteclip.data import loader

MODELS = ("open_clip:ViT-B-16-SigLIP2-384", "timm:vit_base_patch14_reg4_dinov2")
ENCODED = 1
PICTURES = 8  # that are written, and read again and again
PAUSE = 0.2  # seconds between two readings
MB = 1e6


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--megapixels", type=float, default=12.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [*pictures(Path(folder), options.images, options.megapixels)]
        for name in options.models:
            found = measured(name, paths, options.batch_size, options.workers)
            print(f"{name}: {described(found, options.workers)}", flush=True)


def described(found: dict[str, float], workers: int) -> str:
    """Return a line of megabytes: those measured, and those for which the job asks."""
    asked = job_resources.memory("encode_images", 0, 1, workers)
    parts = ", ".join(f"{what} {value:,.0f}" for what, value in found.items())
    return f"{parts}, asked for {asked:,} MB"


def measured(
    name: str, paths: list[str], batch_size: int, workers: int
) -> dict[str, float]:
    """Return megabytes: of the process with its model, and of all processes at their peak."""
    encode, transform = model_of(name)
    files = loader.ImageFiles(paths, transform)
    device = torch.device("cpu")
    order = loader.in_order(len(paths), batch_size)
    with Meter() as meter:
        alone = meter.now() / MB
        with torch.inference_mode():
            for _, images in loader.by_processes(files, order, device, workers):
                encode(images[:ENCODED])
    peak = max(alone, meter.peak / MB)
    return {"MB before": alone, "at the peak": peak, "for loading": peak - alone}


def model_of(name: str) -> tuple[Callable[[torch.Tensor], Any], Any]:
    """Return the encoder of a model with random weights, and its transform."""
    library, _, shape = name.partition(":")
    if library == "open_clip":
        model, _, transform = open_clip.create_model_and_transforms(shape, pretrained=None)
        return model.eval().encode_image, transform
    model = timm.create_model(shape, pretrained=False, num_classes=0).eval()
    return model, timm.data.create_transform(**timm.data.resolve_model_data_config(model))


class Meter:
    """Reads the memory of this process and its children, in a thread of its own."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._empty = shutil.disk_usage("/dev/shm").used
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._ended.wait(PAUSE):
            self.peak = max(self.peak, self.now())

    def now(self) -> float:
        """Return the bytes in use."""
        this = psutil.Process()
        own = sum(private(each.pid) for each in [this, *this.children(recursive=True)])
        return own + shutil.disk_usage("/dev/shm").used - self._empty


def private(process: int) -> float:
    """Return a process's share of memory in bytes, without /dev/shm. 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    fields = dict(line.split()[:2] for line in lines[1:])
    return sum(float(fields[name]) for name in ("Pss_Anon:", "Pss_File:")) * 1024


def pictures(folder: Path, n: int, megapixels: float) -> Iterator[str]:
    """Write PICTURES JPEGs, and yield n of their paths."""
    rng = np.random.default_rng(0)
    side = round((megapixels * 1e6 / 12) ** 0.5)
    for number in range(PICTURES):
        grid = Image.fromarray(rng.integers(0, 256, (188, 250, 3), dtype=np.uint8))
        picture = grid.resize((4 * side, 3 * side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
    yield from (str(folder / f"{number % PICTURES}.jpg") for number in range(n))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
