"""Pictures unlike each other, and twins of them."""

import io

import numpy as np
from PIL import Image


def picture(seed, size=(160, 120)):
    """Coarse random patches: none is like that of another seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def scaled(image):
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def recompressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(image, share=0.93, across=0.7, down=0.2):
    """A share of each side, from a place of it."""
    width, height = round(share * image.width), round(share * image.height)
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    return image.crop((left, top, left + width, top + height))


TWINS = {"scaled": scaled, "recompressed": recompressed, "cropped": cropped}
