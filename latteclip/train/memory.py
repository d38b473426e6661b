"""How many images and texts fit into a GPU's memory at once: `compute.micro_batch: auto`.

Letters: T texts, L tokens.
"""

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import torch

from latteclip.clip import encode
from latteclip.clip.model import Clip
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)

MOMENTS = 2  # of AdamW, each as large as the weights
KINDS_OF_TEXT = 4  # that an objective asks for at most, per image of a batch


def on_gpu(clip: Clip) -> bool:
    """Return whether there is something to choose: a CPU takes the whole batch."""
    return clip.device.type == "cuda"


def micro_batch(
    clip: Clip, tokens: torch.Tensor, images: int, *, divisible: bool = True
) -> int | None:
    """Return how many images or texts of a batch may be encoded at once; None: all of them.

    A step is tried with the whole batch, then with the largest power of two below, and with half of
    that each time the memory runs out. Weights and random generators stay as they are.

    Args:
        clip: the model in training mode.
        tokens: [T, L] of all texts of the training.
        images: of a batch that fall to this process.
        divisible: whether the model may see parts of a batch.

    Raises:
        UserError: not even one image fits, or the whole batch does not and is not divisible.
    """
    size = images
    while not _fits(clip, tokens, images, None if size == images else size):
        if size == 1:
            raise UserError(
                "Not even one image at a time can be trained on; set "
                "compute.gradient_checkpointing to true, take a smaller clip.model, or free the "
                "GPU."
            )
        size = 1 << ((size - 1).bit_length() - 1)
    if size == images:
        return None
    if not divisible:
        raise UserError(
            f"A batch of {images} images does not fit into the GPU's memory, and with "
            "finetune.batch_norm train the BatchNorm layers of clip.model must see it whole; lower "
            f"finetune.batch_size to {size}, or set finetune.batch_norm to frozen."
        )
    log.info(
        "Encoding %d images or texts at once (compute.micro_batch: auto): a batch of %d does not "
        "fit into the GPU's memory.",
        size,
        images,
    )
    return size


def _fits(clip: Clip, tokens: torch.Tensor, images: int, size: int | None) -> bool:
    """Return whether a step has memory that encodes `size` images or texts at once.

    The optimizer's moments, which the first real step allocates, are part of it.
    """
    height, width = np.broadcast_to(clip.model.visual.image_size, 2)  # type: ignore[arg-type, union-attr]
    causal = encode.CausalText.of(clip.model)  # any other tower sees the padding as well
    order = (causal.lengths(tokens) if causal else tokens[:, 0]).argsort()
    spread = torch.linspace(0, len(order) - 1, min(len(order), KINDS_OF_TEXT * images)).long()
    cuda = [clip.device] if clip.device.type == "cuda" else []
    trained = [each for each in clip.model.parameters() if each.requires_grad]
    before, clip.micro_batch = clip.micro_batch, size
    try:
        with torch.random.fork_rng(devices=cuda):
            moments = [torch.empty_like(each) for each in trained for _ in range(MOMENTS)]
            pictures = torch.zeros(images, 3, height, width, device=clip.device)
            features = encode.encode_images(clip, pictures).sum()
            (features + encode.encode_texts(clip, tokens[order[spread]].long()).sum()).backward()
            del moments
    except torch.OutOfMemoryError:
        return False
    finally:
        clip.micro_batch = before
        clip.model.zero_grad()
        if cuda:
            torch.cuda.empty_cache()
    return True


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
