"""How many images and texts fit into a GPU's memory at once: `compute.micro_batch: auto`.

The need of an image and of a text is measured on the model at hand, with a few of each.

Letters: n items of a trial, B batch, T texts, L tokens.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from latteclip.clip import encode
from latteclip.clip.model import Clip
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)

# Items of the two trials that are compared: what does not grow with them drops out. Both fill all
# `encode.LENGTH_BUCKETS`, for each bucket of texts has a gradient of the whole vocabulary.
TRIALS = (3, 12)
SPARED = 0.1  # share of the free memory that is left to fragments and workspaces
MOMENTS = 2  # of AdamW, each as large as the weights
KINDS_OF_TEXT = 4  # that an objective asks for at most, per image of a batch
GIB = 2**30


class Meter(Protocol):
    """Counts the bytes of tensors on a device."""

    def start(self) -> None:
        """Forget the highest count."""

    def now(self) -> int:
        """Bytes at this moment."""

    def peak(self) -> int:
        """The most bytes since `start`."""


class CudaMeter:
    """PyTorch's own counts of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def free(self) -> int:
        """Bytes that this process can still have, with those that PyTorch keeps unused."""
        unused = torch.cuda.memory_reserved(self.device) - self.now()
        return torch.cuda.mem_get_info(self.device)[0] + unused


@dataclass(frozen=True)
class Need:
    """Bytes that encoding takes until its backward pass is done."""

    each: float
    fixed: float = 0.0  # whatever the number of items

    def of(self, n: int) -> float:
        """Bytes of n items at once."""
        return self.fixed + n * self.each


@dataclass(frozen=True)
class StepNeeds:
    """Bytes of a training step, besides what is there before it."""

    image: Need
    text: Need  # of average length
    longest: Need  # of the longest texts
    weights: int  # of gradients and moments

    def whole(self, images: int, texts: int) -> float:
        """All images and texts of a step at once."""
        fixed = max(self.image.fixed, self.text.fixed)
        return self.weights + fixed + images * self.image.each + texts * self.text.each

    def parts(self, size: int) -> float:
        """At most `size` images or texts at once (gradient caching)."""
        return self.weights + max(self.image.of(size), self.longest.of(size))


def on_gpu(clip: Clip) -> bool:
    """Whether there is something to choose: a CPU takes the whole batch."""
    return clip.device.type == "cuda"


def needs(clip: Clip, tokens: torch.Tensor, meter: Meter) -> StepNeeds:
    """Measure a model in training mode; neither its gradients nor random generators change.

    Args:
        clip: the model, as it is to be trained.
        tokens: [T, L] of all texts of the training.
        meter: of its device.
    """
    size = clip.model.visual.image_size  # type: ignore[union-attr]
    height, width = np.broadcast_to(size, 2)  # type: ignore[arg-type]
    causal = encode.CausalText.of(clip.model)  # any other tower sees the padding as well
    order = (causal.lengths(tokens) if causal else tokens[:, 0]).argsort(descending=True)

    def images(n: int) -> torch.Tensor:
        return encode.encode_images(clip, torch.zeros(n, 3, height, width, device=clip.device))

    def texts(n: int) -> torch.Tensor:
        spread = torch.linspace(0, len(order) - 1, n).long()
        return encode.encode_texts(clip, tokens[order[spread]].long())

    def longest(n: int) -> torch.Tensor:
        return encode.encode_texts(clip, tokens[order[torch.arange(n) % len(order)]].long())

    cuda = [clip.device] if clip.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        image, text, long = (_need(kind, meter) for kind in (images, texts, longest))
    clip.model.zero_grad()
    weights = sum(p.nbytes for p in clip.model.parameters() if p.requires_grad)
    return StepNeeds(image, text, long, (1 + MOMENTS) * weights)


def _need(encoded: Callable[[int], torch.Tensor], meter: Meter) -> Need:
    """Compare two trials; one before them leaves what is allocated once, gradients included.

    Of the two measures, what is held between forward and backward pass misses what gradient
    checkpointing computes anew, and for a small trial the highest count can be that of a gradient.
    """
    _trial(encoded, TRIALS[0], meter)
    small, large = (_trial(encoded, n, meter) for n in TRIALS)
    grown = [more - less for less, more in zip(small, large, strict=True)]
    each = max(grown) / (TRIALS[1] - TRIALS[0])
    return Need(each, max(0.0, large[1] - TRIALS[1] * each))


def _trial(encoded: Callable[[int], torch.Tensor], n: int, meter: Meter) -> tuple[int, int]:
    """Bytes of n items after the forward pass, and the most until after the backward pass."""
    meter.start()
    before = meter.now()
    features = encoded(n)
    held = meter.now() - before
    features.sum().backward()
    return held, meter.peak() - before


def micro_batch(
    clip: Clip, tokens: torch.Tensor, images: int, *, divisible: bool = True
) -> int | None:
    """What fits into the memory of the GPU that is free; None is the whole batch.

    Args:
        clip: the model, as it is to be trained.
        tokens: [T, L] of all texts of the training.
        images: of a batch that fall to this process.
        divisible: whether the model may see parts of a batch.

    Raises:
        UserError: not even one image fits, or the whole batch does not and is not divisible.
    """
    meter = CudaMeter(clip.device)
    free = meter.free()
    with explained(max(TRIALS)):
        needed = needs(clip, tokens, meter)
    return choose(needed, free, images, len(tokens), divisible=divisible)


def choose(
    needed: StepNeeds, free: float, images: int, texts: int, *, divisible: bool
) -> int | None:
    """The largest power of two that fits into `free` bytes; None where all images and texts do.

    Raises:
        UserError: see `micro_batch`.
    """
    room = (1 - SPARED) * free
    whole = needed.whole(images, min(texts, KINDS_OF_TEXT * images))
    if whole <= room:
        return None
    size = images
    while size & (size - 1):  # to a power of two
        size &= size - 1
    while size > 1 and needed.parts(size) > room:
        size //= 2
    lacks = (
        f"a batch of {images} needs about {whole / GIB:.1f} GiB of GPU memory, and "
        f"{free / GIB:.1f} GiB are free"
    )
    if needed.parts(size) > room:
        raise UserError(
            f"Not even one image at a time can be trained on: {lacks}; set "
            "compute.gradient_checkpointing to true, take a smaller clip.model, or free the GPU."
        )
    if not divisible:
        raise UserError(
            f"With finetune.batch_norm train, {lacks}, and the BatchNorm layers of clip.model must "
            f"see it whole; lower finetune.batch_size to {size}, or set finetune.batch_norm to "
            "frozen."
        )
    log.info("Encoding %d images or texts at once (compute.micro_batch: auto): %s.", size, lacks)
    return size


@contextlib.contextmanager
def explained(at_once: int, *, divisible: bool = True) -> Iterator[None]:
    """Make one sentence of running out of GPU memory, with what to try.

    Args:
        at_once: how many images or texts are encoded at once.
        divisible: whether the model may see parts of a batch.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        key = "compute.micro_batch" if divisible else "finetune.batch_size"
        advice = f"set {key} to {at_once // 2}"
        if at_once < 2:
            advice = "set compute.gradient_checkpointing to true, or take a smaller clip.model"
        raise UserError(
            f"Training ran out of GPU memory with {at_once} images or texts encoded at once; "
            f"{advice}."
        ) from error
