"""Every kind of CLIP that open_clip builds, tiny; what they are compared by; a tuned model."""

import numpy as np
import torch
from support.tiny import BACKBONES

from latteclip.clip import encode
from latteclip.deploy.predictor import Predictor

CPU = torch.device("cpu")
KINDS = list(BACKBONES)
TEXTS = [
    "a photo of a red striped thing",
    "blue",
    "sky",
    "the dotted and woven thing with the grey sky and a photo of the sky",
    "a grey thing",
    "woven",
]


def pictures(clip, n):
    """n images of the size that the model wants, each of another colour."""
    generator = torch.Generator().manual_seed(n)
    height, width = np.broadcast_to(clip.model.visual.image_size, 2)
    colours = 2 * torch.randn(n, 3, 1, 1, generator=generator)
    return colours + torch.randn(n, 3, height, width, generator=generator)


def limit_memory(monkeypatch, clip, rows):
    """Let both towers run out of memory above so many images or texts at once."""

    def limited(function):
        def run(*args):
            if len(args[-1]) > rows:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB."
                )
            return function(*args)

        return run

    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(clip.model, name, limited(getattr(clip.model, name)))
    monkeypatch.setattr(encode.CausalText, "encode", limited(encode.CausalText.encode))


CLASSNAMES = [
    "red thing",
    "b, with a comma",
    "grey",
    "=striped",
    "dotted",
    "woven",
    "the sky",
]
WRITTEN = {"grey": "Grey"}
NAMES = [WRITTEN.get(name, name) for name in CLASSNAMES]  # as the dataset writes them
TEMPLATES = ["a photo of the {}.", "a {}", "the {}?"]


def predictions(model, paths):
    """What we predict for images."""
    return Predictor(model, device="cpu", threads=1)(paths, topk=10**6)
