"""Training pictures a second of one core: open_clip's transform of PIL pictures, and this package.

Both decode the same files and end in the same normalised crops for ViT-B-32. "Read" is the first
pass over the pictures, "kept" a later one: by PIL with pictures kept decoded in full, here with
those kept shrunken. The ways alternate, so that a busy machine slows both. Seconds are of this
process's CPU, on one thread.

    python benchmarks/loader.py [--pairs 5] [folder of pictures ...]

Without folders: textures of the demo (with its 64 pixels), and photographs of 12 megapixels.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from latteclip.config.sections.textures import TexturesSection
from latteclip.core import devices
from latteclip.data.folder_files import image_files
from latteclip.data.images import open_rgb
from latteclip.demo.generate_textures import generate_textures
from latteclip.train import training_images

MEGAPIXELS = (4000, 3000)
# The transform in open_clip's terms.
AUG_CFG = {
    "scale": training_images.SCALE,
    "color_jitter": training_images.STRENGTHS,
    "color_jitter_prob": training_images.PROBABILITIES[0],
    "gray_scale_prob": training_images.PROBABILITIES[1],
}


class Ways:
    """The two ways to a batch of the same pictures."""

    def __init__(self, paths: list[str], side: int) -> None:
        mean = open_clip.OPENAI_DATASET_MEAN
        std = open_clip.OPENAI_DATASET_STD
        self.paths = paths
        self.device = torch.device("cpu")
        self.by_pil = open_clip.image_transform(side, is_train=True, aug_cfg=AUG_CFG)
        self.transform = training_images.Augmentation((side, side), mean, std)
        self.decoded = [np.asarray(open_rgb(path)) for path in paths]
        sizes = np.array([(pixels.shape[1], pixels.shape[0]) for pixels in self.decoded])
        self.files = training_images.TrainingImages(
            paths, sizes, self.transform, 0, 2**32, "."
        )
        self.package_kept()  # which keeps them

    def pil_read(self) -> None:
        """Decode in full, then transform."""
        self.stack(open_rgb(path) for path in self.paths)

    def pil_kept(self) -> None:
        """Transform alone."""
        self.stack(Image.fromarray(pixels) for pixels in self.decoded)

    def stack(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """Return [B, 3, H, W]. Each image is seeded, so that a resumed training sees the same."""
        found = []
        for number, image in enumerate(images):
            outer = random.getstate()
            torch_outer = torch.get_rng_state()
            random.seed(number)
            torch.default_generator.manual_seed(number)
            found.append(self.by_pil(image))
            random.setstate(outer)
            torch.set_rng_state(torch_outer)
        return torch.stack(found)

    def package_read(self) -> None:
        """Decode as in the first pass, for the cache is emptied."""
        self.files.cache.shapes[:] = 0
        self.package_kept()

    def package_kept(self) -> None:
        """Transform as in the passes after it."""
        keys = [[(0, index) for index in range(len(self.paths))]]
        next(self.files.batches(keys, self.device, 1))


def cpu_seconds(work: Callable[[], None]) -> float:
    """Return the CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(name: str, paths: list[str], side: int, pairs: int) -> None:
    """Print pictures a second by both ways, and the ratio with its spread."""
    ways = Ways(paths, side)
    n = len(paths)
    for kind, pil, package in (
        ("read", ways.pil_read, ways.package_read),
        ("kept", ways.pil_kept, ways.package_kept),
    ):
        seconds = [(cpu_seconds(pil), cpu_seconds(package)) for _ in range(pairs)]
        before, now = (statistics.median(column) for column in zip(*seconds, strict=True))
        ratios = sorted(one / other for one, other in seconds)
        print(
            f"{name}, {kind}: {n / before:.0f}/s and {n / now:.0f}/s, ratio {before / now:.1f} "
            f"(pairs {ratios[0]:.1f} to {ratios[-1]:.1f})",
            flush=True,
        )


def photographs(folder: Path, n: int) -> list[str]:
    """Write JPEGs of 12 megapixels with detail of many sizes, and return their paths."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(n):
        image = Image.new("RGB", MEGAPIXELS)
        for step in (64, 16, 4):
            shape = (MEGAPIXELS[1] // step, MEGAPIXELS[0] // step, 3)
            grid = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            image = Image.blend(
                image, grid.resize(MEGAPIXELS, Image.Resampling.BICUBIC), 0.5
            )
        paths.append(str(folder / f"{number}.jpg"))
        image.save(paths[-1], quality=90)
    return paths


def main() -> None:
    """Compare the two on each kind of pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=128, help="of each kind at most")
    args = parser.parse_args()
    devices.pick("cpu", 1)
    with tempfile.TemporaryDirectory() as name:
        textures = Path(name) / "textures"
        generate_textures(
            TexturesSection(train=args.pictures, test=1, gap=0.85, seed=0), textures
        )
        found = [("textures of the demo", textures, 64)]
        found += [(str(folder), folder, 224) for folder in args.folders if folder.is_dir()]
        for title, folder, side in found:
            files = sorted(map(str, image_files(folder, deep=True)))
            compare(title, files[: args.pictures], side, args.pairs)
        compare("12 megapixels", photographs(Path(name) / "large", 8), 224, args.pairs)


if __name__ == "__main__":
    main()
