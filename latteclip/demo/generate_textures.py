"""The demo's dataset on disk: PNG files of textures, and a CoOp split."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from latteclip.core.files import replacing
from latteclip.demo.textures import CLASSNAMES, Attributes, generate


@dataclass(frozen=True)
class TextureSettings:
    """How many textures, and from which domain."""

    train: int
    test: int
    gap: float  # 0 (source) to 1 (target)
    seed: int


def generate_textures(settings: TextureSettings, output: str | Path) -> None:
    """Write `output/images/` and `output/split.json`.

    Train and test images come from different random streams of the seed. The whole folder appears
    at once, in place of an older one if any.
    """
    gap, seed = settings.gap, settings.seed
    with replacing(output) as new:
        new.mkdir()
        train = _write_images(new, *generate(settings.train, gap, seed), first=0)
        drawn = generate(settings.test, gap, seed, stream=1)
        test = _write_images(new, *drawn, first=settings.train)
        split = {"train": train, "val": [], "test": test}
        (new / "split.json").write_text(json.dumps(split, indent=0) + "\n", encoding="utf-8")


def _write_images(
    folder: Path, images: np.ndarray, attributes: list[Attributes], first: int
) -> list[list[str | int]]:
    """Write images as images/<classname>/<classname>_<number>.png; returns their split entries."""
    entries: list[list[str | int]] = []
    for number, (image, named) in enumerate(zip(images, attributes, strict=True), first):
        path = Path("images", named.classname, f"{named.classname}_{number:05d}.png")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / path)
        entries.append([path.as_posix(), CLASSNAMES.index(named.classname), named.classname])
    return entries
