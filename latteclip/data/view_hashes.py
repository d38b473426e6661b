"""Perceptual hashes of a picture and of crops of it, by which near-duplicates are found."""

import numpy as np
from PIL import Image

SIDE = 128  # pixels of the picture of which views are cut
HASHED = 32  # pixels of a view, as the pHash reads it
# Left, top, right and bottom of each view: the whole, and crops of 95 % of each side.
VIEWS = [
    (0, 0, 128, 128),
    (3, 3, 125, 125),
    (0, 0, 122, 122),
    (6, 0, 128, 122),
    (0, 6, 122, 128),
    (6, 6, 128, 128),
]
BYTES = 16 * len(VIEWS)
# Standard deviation in grey levels below which a picture is of one colour.
CONTRAST = 2.0


def view_hashes(picture: Image.Image) -> bytes:
    """Return the pHash and then the dHash of each view of a picture, 8 bytes each.

    A picture of one colour has no details to compare: all its bytes are 0.
    """
    import imagehash  # here: only worker processes need it

    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    grey = small.convert("L")
    if np.std(np.asarray(grey)) < CONTRAST:
        return bytes(BYTES)
    size = (HASHED, HASHED)
    # Otherwise each hash would scale the whole view, which takes most of its time.
    views = [
        grey.resize(size, Image.Resampling.BILINEAR, box=view) for view in VIEWS
    ]
    hashes = [*map(imagehash.phash, views), *map(imagehash.dhash, views)]
    return b"".join(np.packbits(each.hash).tobytes() for each in hashes)
