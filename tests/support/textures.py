"""Textures as the demo has them, as separate files."""

from generate_textures import generate
from PIL import Image


def write_textures(folder, n, *, gap, seed):
    """Write n textures below folders of their classes; the paths, by class."""
    paths = []
    for number, (image, named) in enumerate(zip(*generate(n, gap, seed), strict=True)):
        path = folder / named.classname / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        paths.append(str(path))
    return sorted(paths)
