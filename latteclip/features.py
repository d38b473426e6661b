"""Image features of files, and the classes they are closest to.

Letters: N images, C classes, D embedding width, K best classes kept.
"""

from collections.abc import Iterator, Sequence

import torch

from latteclip import clip as clips
from latteclip import images
from latteclip.progress import Progress

ROWS = 2**14  # images whose scores are held at once


def best_classes(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best classes of each row [N, C], best first, and their scores, both [N, min(k, C)].

    Equal scores are ordered by class, so that the first column is always `scores.argmax(1)`.
    """
    best = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    indices, values = best.indices[:, :k], best.values[:, :k]
    # `topk` orders equal scores as it likes; only rows that have some are worth the sorting.
    ties = (best.values[:, 1:] == best.values[:, :-1]).any(dim=1)
    if ties.any():
        ordered = scores[ties].sort(dim=1, descending=True, stable=True)
        indices[ties] = ordered.indices[:, :k]
    return indices, values


def classify(
    features: torch.Tensor, classifier: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`best_classes` of images [N, D] under a classifier [C, D]; ROWS of [N, C] at a time."""
    parts = [best_classes(part @ classifier.T, k) for part in features.split(ROWS)]
    indices, values = zip(*parts, strict=True)
    return torch.cat(indices), torch.cat(values)


def encode_files(
    clip: clips.Clip, paths: Sequence[str], batch_size: int, threads: int
) -> torch.Tensor:
    """Features [N, D] of image files under the evaluation transform, on the CPU."""
    files = images.ImageFiles(paths, clip.preprocess)
    batches = encoded(clip, files, batch_size, threads)
    indices, batch = next(batches)
    features = batch.new_empty(len(paths), batch.shape[1])  # filled: `cat` would hold all twice
    features[indices] = batch
    for indices, batch in batches:
        features[indices] = batch
    return features


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
