import io

import numpy as np
from generate_textures import CLASSNAMES, GAP, SEED, TRAIN, generate, jpeg
from PIL import Image
from support.tiny import ROOT

from latteclip.data import images
from latteclip.data.splits import IndexSettings, read_split

FOLDER = ROOT / "latteclip" / "demo" / "images"


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image, float)


def test_the_shards_are_those_of_the_generator():
    """But for rounding: sines and powers differ between processors."""
    split = read_split(FOLDER, IndexSettings(kind="webdataset"))
    drawn, named = generate(TRAIN, GAP, SEED)
    assert sum(item.split == "train" for item in split.items) == TRAIN
    assert tuple(split.names) == CLASSNAMES
    for number in range(0, TRAIN, TRAIN // 10):
        item = split.items[number]
        classname = named[number].classname
        assert item.image_id == f"images/{classname}/{classname}_{number:05d}.jpg"
        assert split.names[item.label] == classname
        stored = pixels(images.read_bytes(FOLDER / item.path))
        assert np.abs(stored - pixels(jpeg(drawn[number]))).mean() < 0.1
