"""How a CLIP model is trained: compiled, or in less memory.

Features and gradients stay the same up to rounding.
"""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from latteclip.clip.encode import text_tower
from latteclip.clip.model import Clip
from latteclip.core.errors import UserError, first_line
from latteclip.train.settings import Compute


def prepare_training(clip: Clip, compute: Compute) -> None:
    """Let both towers be trained as `compute` says.

    - `compile`: torch.compile the towers in place; the names in the state dict stay.
    - `gradient_checkpointing`: the backward pass computes activations anew, block by block.
    - `micro_batch`: encode that many images or texts at once, exactly (Gao et al. 2021, GradCache):
      the loss still compares the whole batch.

    Convolutional image towers get the channels-last memory format on CUDA.

    Raises:
        UserError: the model or the machine cannot do it.
    """
    if compute.micro_batch is not None:
        refuse_batch_norm(clip, "compute.micro_batch", "null", "would see parts of the batch")
    if compute.gradient_checkpointing:
        refuse_batch_norm(
            clip, "compute.gradient_checkpointing", "false", "would count every batch twice"
        )
        _checkpoint_blocks(clip)
    visual: Any = clip.model.visual
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in visual.modules())
    if convolutions > 1 and clip.device.type == "cuda":  # a ViT has one, which cuts the patches
        clip.channels_last = True
        visual.to(memory_format=torch.channels_last)
    if compute.compile:
        _compile(clip)
    clip.micro_batch = compute.micro_batch


def refuse_batch_norm(clip: Clip, key: str, value: str, why: str) -> None:
    """Raise UserError where the model has BatchNorm: its layers `why`, so `key` must be `value`."""
    if any(isinstance(module, BatchNorm) for module in clip.model.modules()):
        raise UserError(
            f"{key} does not go with clip.model, whose BatchNorm layers {why}; set it to {value}."
        )


def _checkpoint_blocks(clip: Clip) -> None:
    """Switch gradient checkpointing on, and see that both towers have it: some only log."""
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
