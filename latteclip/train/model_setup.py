"""Set up a training before its first step: its model, compiled or in less memory, and its data.

Compiling, checkpointing and micro-batches keep features and gradients the same up to rounding.
Letters: N training images, B batch, C classes, T texts, L tokens.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.encode import text_tower
from latteclip.clip.model import Clip
from latteclip.core import devices
from latteclip.core.errors import UserError, first_line
from latteclip.core.signals import Signals
from latteclip.train import data, parallel
from latteclip.train.objectives.base import TokenizedTexts, make_objective
from latteclip.train.settings import FROZEN, Compute, FinetuneSettings, Recipe
from latteclip.train.step import Training, adamw, batch_norms, training_mode

log = logging.getLogger(__name__)
MOMENTS = 2  # of AdamW, each as large as the weights
KINDS_OF_TEXT = 4  # that an objective asks for at most, per image of a batch


def load(
    files: data.TrainingFiles, settings: FinetuneSettings, *, device: str, threads: int
) -> tuple[Clip, TokenizedTexts, data.TrainingData]:
    """Load the pretrained model, its texts and the data of a training.

    Raises:
        UserError: an input is missing or does not fit the others.
    """
    make_objective(settings.objective, settings.switches)  # refuses unknown ones before the work
    picked = devices.pick(device, threads)
    clip = clips.load(settings.model, settings.pretrained, picked, settings.precision)
    if settings.finetune.batch_norm != FROZEN:
        refuse_moving_statistics(clip, settings.compute, parallel.size())
    texts = TokenizedTexts(clip)
    template = settings.words.template
    return clip, texts, data.read(files, template, settings.labels, texts, settings.fold)


def new_training(
    clip: Clip,
    texts: TokenizedTexts,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    recipe: Recipe,
    signals: Signals,
    seed: int,
) -> Training:
    """Return a training that begins with the model as it is, after `prepare_training`."""
    make = make_objective(settings.objective, settings.switches)
    return Training(
        clip,
        make(texts, inputs.texts, seed),
        adamw(clip.model, recipe),
        torch.zeros(len(inputs.classnames), dtype=torch.long, device=clip.device),
        signals,
        recipe.batch_norm,
    )


def prepare_training(
    clip: Clip, compute: Compute, tokens: torch.Tensor, batch_size: int, batch_norm: str = FROZEN
) -> None:
    """Prepare both towers for training.

    - `compile`: torch.compile the towers in place. The names in the state dict stay.
    - `gradient_checkpointing`: the backward pass recomputes activations, block by block.
    - `micro_batch`: encode that many images or texts at once, exactly (Gao et al. 2021, GradCache):
      the loss still compares the whole batch. "auto" takes what fits into a GPU's memory.

    On a GPU, convolutional image towers get the channels-last memory format, in which they are
    faster. On a CPU the backward pass of torch 2.13 writes past its memory in that format.

    Args:
        clip: the model.
        compute: the section of the configuration.
        tokens: [T, L] of all texts of the training.
        batch_size: images of a batch, which all processes share.
        batch_norm: "frozen" or "train", which needs whole batches.

    Raises:
        UserError: the model or the machine cannot do it.
    """
    if compute.gradient_checkpointing:
        _checkpoint_blocks(clip)
    visual: Any = clip.model.visual
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in visual.modules())
    if convolutions > 1 and clip.device.type == "cuda":  # a ViT has one, which cuts the patches
        clip.channels_last = True
        visual.to(memory_format=torch.channels_last)
    if compute.micro_batch != "auto":
        clip.micro_batch = compute.micro_batch
    elif on_gpu(clip):
        images = -(-batch_size // parallel.size())
        training_mode(clip.model, FROZEN)  # the trial leaves statistics alone
        clip.micro_batch = micro_batch(clip, tokens, images, divisible=divisible(clip, batch_norm))
        clip.model.eval()
    if compute.compile:
        _compile(clip)


def on_gpu(clip: Clip) -> bool:
    """Return whether memory may run out: a CPU takes the whole batch."""
    return clip.device.type == "cuda"


def divisible(clip: Clip, batch_norm: str) -> bool:
    """Return whether the model may see a batch in parts: not if BatchNorm takes its statistics."""
    return batch_norm == FROZEN or not any(batch_norms(clip.model))


def refuse_moving_statistics(clip: Clip, compute: Compute, processes: int) -> None:
    """Raise UserError if BatchNorm would not see each batch exactly once and whole."""
    if not any(batch_norms(clip.model)):
        return
    clashes = {
        "compute.micro_batch to null": isinstance(compute.micro_batch, int),
        "compute.gradient_checkpointing to false": compute.gradient_checkpointing,
        "processes.finetune to 1": processes > 1,
    }
    for setting, clash in clashes.items():
        if clash:
            raise UserError(
                "With finetune.batch_norm train the BatchNorm layers of clip.model must see each "
                f"batch once and whole; set {setting}, or finetune.batch_norm to {FROZEN}."
            )


def _checkpoint_blocks(clip: Clip) -> None:
    """Switch gradient checkpointing on. Some towers without it only log, so both are checked."""
    model: Any = clip.model
    reason = ""
    try:
        model.set_grad_checkpointing(True)
    except (ValueError, AttributeError, NotImplementedError) as error:
        reason = f" ({error})"
    for kind, tower in {"image": model.visual, "text": text_tower(model).transformer}.items():
        if not any(
            getattr(module, "grad_checkpointing", False)  # open_clip and timm
            or getattr(module, "gradient_checkpointing", False)  # transformers
            for module in tower.modules()
        ):
            raise UserError(
                f"compute.gradient_checkpointing does not go with clip.model, whose {kind} tower "
                f"{type(tower).__name__} does not support it{reason}; set it to false."
            )


def _compile(clip: Clip) -> None:
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=clip.device))
    except RuntimeError as error:
        raise UserError(
            f"compute.compile: torch.compile does not work on this machine ({first_line(error)}); "
            "install a C++ compiler or set it to false."
        ) from error
    model: Any = clip.model
    model.visual.compile()
    text_tower(model).transformer.compile(dynamic=True)


def micro_batch(
    clip: Clip, tokens: torch.Tensor, images: int, *, divisible: bool = True
) -> int | None:
    """Return how many images or texts of a batch may be encoded at once. None: all of them.

    Tries a step with the whole batch, then with the largest power of two below, and with half of
    that each time the memory runs out. Weights and random generators stay as they are.

    Args:
        clip: the model in training mode.
        tokens: [T, L] of all texts of the training.
        images: this process's share of a batch.
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
    """Return whether memory suffices for a step that encodes `size` images or texts at once.

    The optimiser's moments, which the first real step allocates, are part of it.
    """
    height, width = np.broadcast_to(clip.model.visual.image_size, 2)  # type: ignore[arg-type, union-attr]
    causal = encode.CausalText.of(clip.model)  # any other tower sees the padding as well
    order = (causal.lengths(tokens) if causal else tokens[:, 0]).argsort()
    chosen = torch.linspace(0, len(order) - 1, min(len(order), KINDS_OF_TEXT * images)).long()
    cuda = [clip.device] if clip.device.type == "cuda" else []
    trained = [each for each in clip.model.parameters() if each.requires_grad]
    before, clip.micro_batch = clip.micro_batch, size
    try:
        with torch.random.fork_rng(devices=cuda):
            moments = [torch.empty_like(each) for each in trained for _ in range(MOMENTS)]
            blank = torch.zeros(images, 3, height, width, device=clip.device)
            features = encode.encode_images(clip, blank).sum()
            (features + encode.encode_texts(clip, tokens[order[chosen]].long()).sum()).backward()
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
def explaining_memory(clip: Clip, images: int, batch_norm: str) -> Iterator[None]:
    """Raise UserError with what to lower if the GPU's memory runs out.

    Args:
        clip: the model.
        images: of a batch, which all processes share.
        batch_norm: "frozen" or "train".
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        share = -(-images // parallel.size())
        at_once = min(clip.micro_batch or share, share)
        is_divisible = divisible(clip, batch_norm)
        key = "compute.micro_batch" if is_divisible else "finetune.batch_size"
        advice = f"set {key} to {at_once // 2}"
        if at_once < 2:
            advice = "set compute.gradient_checkpointing to true, or take a smaller clip.model"
        raise UserError(
            f"Training ran out of GPU memory with {at_once} images or texts encoded at once; "
            f"{advice}."
        ) from error
