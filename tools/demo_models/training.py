"""What the trainings of the demo's two models share: inputs, attribute losses, optimiser."""

import logging
import math
import time
from collections.abc import Iterable, Iterator

import generate_textures as textures
import numpy as np
import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)

# Of intensities, all three channels.
MEAN = 0.5
STD = 0.27
HEADS = {
    "classname": textures.CLASSNAMES,
    "foreground": textures.COLOUR_NAMES,
    "background": textures.COLOUR_NAMES,
    "size": textures.SIZES,
    "orientation": (None, *textures.ORIENTATIONS),
    "finish": textures.FINISHES,
}


def generate_range(
    n: int, largest_gap: float, seed: int, *, steps: int = 8
) -> tuple[np.ndarray, list[textures.Attributes]]:
    """Draw n textures in equal parts from `steps` gaps spread evenly over 0..largest_gap."""
    gaps = np.linspace(0, largest_gap, steps)
    parts = np.array_split(np.arange(n), steps)
    drawn = [
        textures.generate(len(part), gap, seed, stream=stream)
        for stream, (part, gap) in enumerate(zip(parts, gaps, strict=True))
    ]
    images = np.concatenate([images for images, _ in drawn])
    return images, [attributes for _, named in drawn for attributes in named]


def to_channels(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 [B, H, W, 3] to uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 [B, 3, H, W] to a model's float32 input."""
    return (images.float() / 255 - MEAN) / STD


def flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror a batch [B, H, W, 3] at random. Every attribute stays true."""
    if rng.random() < 0.5:
        images = images[:, ::-1]
    if rng.random() < 0.5:
        images = images[:, :, ::-1]
    return images


def attribute_targets(
    attributes: list[textures.Attributes],
) -> dict[str, torch.Tensor]:
    """Return index [N] of each image's value among those of HEADS."""
    return {
        name: torch.tensor([values.index(getattr(a, name)) for a in attributes])
        for name, values in HEADS.items()
    }


def attribute_heads(width: int) -> torch.nn.ModuleDict:
    """Return a linear classifier for each attribute, on features [..., width]."""
    return torch.nn.ModuleDict(
        {
            name: torch.nn.Linear(width, len(values))
            for name, values in HEADS.items()
        }
    )


def attribute_loss(
    heads: torch.nn.ModuleDict,
    features: torch.Tensor,
    targets: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Sum over the attributes of the cross-entropy. Features [B, width], targets [B] each."""
    losses = [
        F.cross_entropy(head(features), targets[name])
        for name, head in heads.items()
    ]
    return torch.stack(losses).sum()


def optimiser(
    modules: list[torch.nn.Module], weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices alone."""
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.ndim >= 2],
                "weight_decay": weight_decay,
            },
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )


def optimise(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[torch.Tensor],
    steps: int,
    peak: float,
) -> Iterator[int]:
    """Take one step for each loss and yield its number.

    The learning rate warms up over 100 steps to `peak` and decays by a cosine to a hundredth.
    Gradients are clipped to norm 1. Logs a line every ten seconds.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    started = logged = time.monotonic()
    for step, loss in zip(range(steps), losses, strict=False):
        decay = 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 100) * decay
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if time.monotonic() - logged > 10:
            logged = time.monotonic()
            log.info(
                "step %d of %d, %.0f s, loss %.3f",
                step,
                steps,
                logged - started,
                loss.item(),
            )
        yield step
