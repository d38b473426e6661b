"""Image features of files.

Letters: N images, B batch, D embedding width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.feature_rows import FeatureRows
from latteclip.core.progress import Progress
from latteclip.data import loader


def encode_files(
    clip: clips.Clip, paths: Sequence[str], batch_size: int, threads: int
) -> FeatureRows:
    """Features [N, D] of image files under the evaluation transform."""
    files = loader.ImageFiles(paths, clip.preprocess)
    features = FeatureRows(len(paths), clip.config["embed_dim"])
    for indices, (batch,) in encoded([clip], files, batch_size, threads):
        features[indices] = batch
    return features


@torch.no_grad()
def encoded(
    models: Sequence[clips.Clip], files: loader.ImageFiles, batch_size: int, threads: int
) -> Iterator[tuple[Any, list[torch.Tensor]]]:
    """The marks of B files, together, and their features [B, D] by each model, on the CPU.

    The models are on one device and take what the transform of `files` gives.
    """
    progress = Progress(len(files), "images")
    for marks, batch in loader.batches(
        files, loader.in_order(len(files), batch_size), models[0].device, threads
    ):
        yield marks, [encode.encode_images(clip, batch).cpu() for clip in models]
        progress.add(len(batch))
