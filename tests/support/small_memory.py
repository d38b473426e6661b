"""A GPU that runs out of memory, played on the CPU."""

import torch

from latteclip.clip import encode


def limit(monkeypatch, clip, rows):
    """Let both towers run out of memory above so many images or texts at once."""

    def limited(function):
        def run(*args):
            if len(args[-1]) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return function(*args)

        return run

    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(clip.model, name, limited(getattr(clip.model, name)))
    monkeypatch.setattr(encode.CausalText, "encode", limited(encode.CausalText.encode))
