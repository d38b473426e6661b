"""Image features of files, and the classes they are closest to.

Letters: N images, C classes, D embedding width, K best classes kept.
"""

from collections.abc import Iterator, Sequence

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


def encode_files(
    clip: clips.Clip, paths: Sequence[str], batch_size: int, threads: int
) -> torch.Tensor:
    """Features [N, D] of image files under the evaluation transform, on the CPU."""
    files = images.ImageFiles(paths, clip.preprocess)
    return torch.cat([features for _, features in encoded(clip, files, batch_size, threads)])


@torch.no_grad()
def encoded(
    clip: clips.Clip, files: images.ImageFiles, batch_size: int, threads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The indices [B] that the files give, and features [B, D], batch by batch, on the CPU."""
    progress = Progress(len(files), "images")
    for indices, batch in images.batches(
        files, images.in_order(len(files), batch_size), clip.device, threads
    ):
        yield indices, clips.encode_images(clip, batch).cpu()
        progress.add(len(indices))
