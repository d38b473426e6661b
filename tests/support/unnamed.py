"""Results of a dataset without class names, as the stages before the proposal leave them."""

import numpy as np
from support.tiny import write_captions, write_index, write_pictures

from latteclip.config.keys import DiscoverSection
from latteclip.core import tables
from latteclip.core.tables import EncoderMetadata
from latteclip.discover.discover_classes import discover_classes, propose_classes
from latteclip.discover.proposal import FILE

KINDS = ["cup", "dog", "car"]
N = 36


def run(folder, **more):
    """Run the stages as their rules do."""
    inputs = (f"{name}.parquet" for name in ("unnamed_images", "names", "unnamed_features"))
    proposed = str(folder / FILE)
    outputs = ("classes.txt", "discovery.json")
    propose_classes(*(str(folder / name) for name in inputs), DiscoverSection(), proposed)
    discover_classes(proposed, *(str(folder / name) for name in outputs), **more)


def write_inputs(folder, answers, spread=1.0):
    """Write images of three kinds, with these answers. Without a spread, all look alike."""
    rng = np.random.default_rng(0)
    kinds = np.arange(len(answers)) % len(KINDS)
    files = write_pictures(folder / "pictures", len(answers))
    n = len(files)
    write_index(folder / "unnamed_images.parquet", files, ["train"] * n, [None] * n, [])
    ids = [f"{number:03d}.png" for number in range(n)]
    write_captions(folder / "names.parquet", ids, answers)
    features = rng.normal(size=(len(KINDS), 8))[kinds] + 0.2 * rng.normal(size=(n, 8))
    features = 1 + spread * (features - 1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    columns = {
        "image_id": ids,
        "image_features": tables.list_column(features.astype(np.float32)),
    }
    metadata = EncoderMetadata(model="a/clip", width=8)
    path = folder / "unnamed_features.parquet"
    tables.write(path, columns, tables.IMAGE_FEATURES, metadata)
