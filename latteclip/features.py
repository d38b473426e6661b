"""Image features of files, and the classes they are closest to.

Letters: N images, C classes, D embedding width, K best classes kept.
"""

from collections.abc import Sequence

import torch

from latteclip import clip as clips
from latteclip import images
from latteclip.progress import Progress


def best_classes(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best classes of each row [N, C], best first, and their scores, both [N, min(k, C)].

    Equal scores are ordered by class, so that the first column is always `scores.argmax(1)`.
    """
    ordered = scores.sort(dim=1, descending=True, stable=True)
    return ordered.indices[:, :k], ordered.values[:, :k]


@torch.no_grad()
def encode_files(
    clip: clips.Clip, paths: Sequence[str], batch_size: int, threads: int
) -> torch.Tensor:
    """Features [N, D] of image files under the evaluation transform, on the CPU."""
    files = images.ImageFiles(paths, clip.preprocess)
    progress = Progress(len(paths), "images")
    features = []
    for indices, batch in images.batches(
        files, images.in_order(len(paths), batch_size), clip.device, threads
    ):
        features.append(clips.encode_images(clip, batch).cpu())
        progress.add(len(indices))
    return torch.cat(features)
