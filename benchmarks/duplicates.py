"""How many planted twins are found, how many pairs are none, and what a million images take.

    python benchmarks/duplicates.py [FOLDER ...] [--images 600] [--scale 100000]

plants twins of each kind for images of the demo's textures and of the folders. Recall: the share of
planted twins that are found. Precision: of the pairs of an image with a planted twin, the share
that are of the same image. Images of a folder that are twins of each other count against it.
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from latteclip.config.sections.textures import TexturesSection
from latteclip.data.find_duplicates import candidates, near_duplicates, small_picture
from latteclip.data.fingerprints import BITS, THUMBNAIL, VIEWS, Fingerprint, fingerprint
from latteclip.data.folder_files import image_files
from latteclip.data.images import open_rgb
from latteclip.demo.generate_textures import generate_textures

FLIPPED = 40  # bits of the twins' hashes at scale


def scaled(image: Image.Image, share: float) -> Image.Image:
    """Return an image with a share of the pixels of each side."""
    size = (max(1, round(share * image.width)), max(1, round(share * image.height)))
    return image.resize(size, Image.Resampling.LANCZOS)


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as a JPEG of low quality has it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, share: float, draw: np.random.Generator) -> Image.Image:
    """Return a share of each side of an image, from anywhere."""
    left, top = (draw.random() * (1 - share) * side for side in image.size)
    width, height = (share * side for side in image.size)
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


Plant = Callable[[Image.Image, np.random.Generator], Image.Image]
KINDS: dict[str, Plant] = {
    "half the size": lambda image, _: scaled(image, 0.5),
    "JPEG of quality 30": lambda image, _: recompressed(image, 30),
    "95 % of each side": lambda image, draw: cropped(image, 0.95, draw),
    "90 % of each side": lambda image, draw: cropped(image, 0.9, draw),
    "85 % of each side": lambda image, draw: cropped(image, 0.85, draw),
    "95 %, half the size, quality 50": lambda image, draw: recompressed(
        scaled(cropped(image, 0.95, draw), 0.5), 50
    ),
}


def pairs_of(images: list[Image.Image], prints: list[Fingerprint]) -> set[tuple[int, int]]:
    """Return the pairs among images."""
    hashes = np.frombuffer(b"".join(one.hashes for one in prints), np.uint8)
    thumbnails = np.frombuffer(b"".join(one.thumbnail for one in prints), np.uint8)
    found, _ = near_duplicates(
        hashes.reshape(len(prints), len(VIEWS), BITS // 8),
        thumbnails.reshape(len(prints), THUMBNAIL, THUMBNAIL),
        lambda row: small_picture(images[row]),
    )
    return {(int(one), int(other)) for one, other in found}


def planted(paths: list[Path]) -> None:
    """Print recall and precision for each kind of twins, pairs without any, and the cost."""
    times = [time.process_time()]
    images = [open_rgb(path) for path in paths]
    times.append(time.process_time())
    prints = [fingerprint(image) for image in images]
    times.append(time.process_time())
    decoding, printing = np.diff(times)
    n = len(prints)
    print(f"{n} images, pairs among themselves: {len(pairs_of(images, prints))}")
    print(f"CPU time of fingerprints over that of decoding: {printing / decoding:.2f}")
    for kind, plant in KINDS.items():
        draw = np.random.default_rng(0)
        copies = [plant(image, draw) for image in images]
        both = prints + [fingerprint(copy) for copy in copies]
        across = {
            (one, other)
            for one, other in pairs_of(images + copies, both)
            if one < n <= other
        }
        right = sum(other == one + n for one, other in across)
        print(
            f"| {kind} | {100 * right / n:.1f} | {100 * right / max(1, len(across)):.1f} "
            f"({len(across) - right} of {len(across)}) |"
        )


def scale(n: int) -> None:
    """Print time and recall of the search among n random hashes, a tenth of them with a twin."""
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 256, (n, len(VIEWS), BITS // 8), dtype=np.uint8)
    m = n // 20
    flips = np.zeros((m, BITS), np.uint8)
    flips[:, :FLIPPED] = 1
    flips = draw.permuted(flips, axis=1)
    hashes[n - m :, 0] = hashes[:m, 0] ^ np.packbits(flips, axis=1)
    start = time.perf_counter()
    cpu = time.process_time()
    found = candidates(hashes)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    hits = {(int(a), int(b)) for a, _, b in found}
    recall = sum((i, n - m + i) in hits or (n - m + i, i) in hits for i in range(m)) / m
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n} images: {seconds:.0f} s by the clock, {cpu:.0f} s of CPU, {peak:.0f} MiB; of {m} "
        f"twins with {FLIPPED} bits flipped {100 * recall:.1f} % are proposed, and "
        f"{len(hits - {(i, n - m + i) for i in range(m)} - {(n - m + i, i) for i in range(m)})} "
        "other pairs"
    )


def main() -> None:
    """Print the figures of textures, folders, and a large number of hashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--scale", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "textures"
        generate_textures(
            TexturesSection(train=args.images, test=1, gap=0.85, seed=0), str(made)
        )
        for place in (made, *args.folders):
            print("textures" if place == made else place.name)
            planted(image_files(place, deep=True)[: args.images])
    if args.scale:
        scale(args.scale)


if __name__ == "__main__":
    main()
