"""Where tensors live and how many threads compute."""

import contextlib

import torch

from latteclip.memory import keep_big_buffers


def pick(name: str, threads: int) -> torch.device:
    """The device called `name` ("auto": CUDA where there is one), with `threads` CPU threads."""
    torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        keep_big_buffers()
    return torch.device(name)


def autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast on CUDA, float32 elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()
