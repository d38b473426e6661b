"""Every kind of CLIP that open_clip builds, tiny; what they are compared by."""

import numpy as np
import torch
import torch.nn.functional as F
from support.tiny import BACKBONES

from latteclip.clip import encode
from latteclip.train.objectives.base import contrastive

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


def stock_images(clip, images):
    return F.normalize(clip.model.encode_image(images), dim=-1)


def stock_texts(clip, tokens):
    return F.normalize(clip.model.encode_text(tokens), dim=-1)


def gradients(clip, encode_images=encode.encode_images, encode_texts=encode.encode_texts):
    """Features of as many pictures as TEXTS, of the TEXTS, and the gradients of their loss."""
    clip.model.zero_grad()
    features = encode_images(clip, pictures(clip, len(TEXTS)))
    texts = encode_texts(clip, clip.tokenizer(TEXTS))
    loss = contrastive(features, texts, clip.model.logit_scale.exp())
    loss.backward()
    named = clip.model.named_parameters()
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    return torch.cat([features, texts]).detach(), found


def assert_same_gradients(left, right, rtol=1e-4):
    torch.testing.assert_close(left[0], right[0], rtol=rtol, atol=1e-6)
    assert left[1].keys() == right[1].keys()
    largest = max(gradient.abs().max() for gradient in right[1].values())
    for name, gradient in right[1].items():
        torch.testing.assert_close(
            left[1][name], gradient, rtol=rtol, atol=1e-6 * float(largest), msg=name
        )


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
