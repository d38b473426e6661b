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
    for indices, batch in encoded(clip, files, batch_size, threads):
        features[indices] = batch
    return features


@torch.no_grad()
def encoded(
    clip: clips.Clip, files: loader.ImageFiles, batch_size: int, threads: int
) -> Iterator[tuple[Any, torch.Tensor]]:
    """The marks of B files, together, and features [B, D], batch by batch, on the CPU."""
    progress = Progress(len(files), "images")
    for marks, batch in loader.batches(
        files, loader.in_order(len(files), batch_size), clip.device, threads
    ):
        yield marks, encode.encode_images(clip, batch).cpu()
        progress.add(len(batch))
