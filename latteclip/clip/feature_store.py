"""Features of image files by frozen models, stored by the contents of images and models.

An image that is new costs its own encoding. Deleting the store is safe: a run encodes again.
"""

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip.classifier import ROWS, FeatureMemmap, parts
from latteclip.clip.encode import encoded
from latteclip.clip.model import Clip
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import digest, digest_of
from latteclip.core.terminal import log_work
from latteclip.data.loader import ImageFiles

log = logging.getLogger(__name__)
ADDRESS = re.compile(r" at 0x\w+")  # of a function, which differs in each process


@dataclass
class PartMetadata:
    """The metadata of STORED_FEATURES."""

    images: int
    seconds: float  # of encoding all of them


def encode_once(
    clip: Clip,
    paths: pa.ChunkedArray,
    checksums: pa.ChunkedArray,
    store: str,
    threads: int,
) -> tuple[FeatureMemmap, float]:
    """Return features [N, D] of image files, and the mean seconds of encoding an image.

    Images that are not in the store are encoded, and written by parts of ROWS images, of which a
    killed job loses the last. UserError: the model gives numbers that are not finite.
    """
    folder = Path(store, identity(clip))
    unique = checksums.combine_chunks().dictionary_encode()
    contents, rows = unique.dictionary, np.array(unique.indices)
    features = FeatureMemmap(len(contents), clip.width)
    missing = _read(folder, contents, features)
    first = np.unique(rows, return_index=True)[1]  # a file of each content
    files = ImageFiles(tables.Strings(paths.take(first[missing])), clip.pixels)
    started = written = time.monotonic()
    start, end = 0, 0
    for indices, (batch,) in encoded([clip], files, threads) if len(files) else ():
        if not batch.isfinite().all():
            raise UserError(
                "The model gives features that are not finite numbers; take another one."
            )
        features[torch.from_numpy(missing[indices])] = batch
        end += len(batch)
        if end - start >= ROWS or end == len(missing):
            now = time.monotonic()
            about = PartMetadata(end - start, now - written)
            _write(folder, contents, features, missing[start:end], about)
            start, written = end, now
    log_work(
        log,
        f"Encoded {len(missing)} images",
        time.monotonic() - started,
        f"{len(contents) - len(missing)} of {len(contents)} are in the store.",
    )
    stored = [
        tables.read_metadata(file, PartMetadata)
        for file in folder.glob("*.parquet")
    ]
    each = sum(one.seconds for one in stored) / max(
        1, sum(one.images for one in stored)
    )
    if len(contents) == len(rows):
        return features, each
    repeated = FeatureMemmap(len(rows), clip.width)
    for some in parts(len(rows)):
        repeated[some] = features[torch.from_numpy(rows[some])]
    return repeated, each


def identity(clip: Clip) -> str:
    """Return a digest of what decides features: weights, network, transform and precision."""
    tower: Any = getattr(clip.model, "visual", clip.model)
    precision = clip.precision if clip.device.type == "cuda" else "float32"
    transform = ADDRESS.sub("", f"{clip.preprocess}")
    weights = digest_of(
        part
        for name, tensor in tower.state_dict().items()
        for part in (name, tensor.cpu().numpy().tobytes())
    )
    return digest(weights, f"{tower}", transform, clip.device.type, precision)[:32]


def _read(
    folder: Path, contents: pa.Array, features: FeatureMemmap
) -> np.ndarray[Any, Any]:
    """Fill in the stored features [U, D] of contents, and return the rows of all others."""
    files = sorted(folder.glob("*.parquet"))
    stored = [tables.read(file, ["checksum"])["checksum"] for file in files]
    chunks = [chunk for each in stored for chunk in each.chunks]
    known = pa.chunked_array(chunks, contents.type)
    places = pc.index_in(contents, known).fill_null(-1).to_numpy()  # [U]
    start = 0
    for file in files:
        for piece in tables.read_pieces(file, ["image_features"], ROWS):
            here = np.flatnonzero(
                (places >= start) & (places < start + len(piece))
            )
            values = tables.from_list_column(piece["image_features"])
            features[torch.from_numpy(here)] = torch.from_numpy(
                values[places[here] - start]
            )
            start += len(piece)
    return np.flatnonzero(places < 0)


def _write(
    folder: Path,
    contents: pa.Array,
    features: FeatureMemmap,
    rows: np.ndarray[Any, Any],
    about: PartMetadata,
) -> None:
    """Write the features of contents to a file that their checksums name, whole or not at all."""
    checksums = contents.take(pa.array(rows))
    columns = {
        "checksum": checksums,
        "image_features": tables.list_column(
            features[torch.from_numpy(rows)].numpy()
        ),
    }
    name = digest_of(checksums.to_pylist())[:32]
    folder.mkdir(parents=True, exist_ok=True)
    tables.write(
        folder / f"{name}.parquet", columns, tables.STORED_FEATURES, about
    )
