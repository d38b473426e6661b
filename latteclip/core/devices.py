"""Where tensors live, in which precision they are computed, and by how many threads."""

import contextlib
import os

import torch

from latteclip.core import gpus
from latteclip.core.errors import UserError
from latteclip.core.memory import keep_big_buffers

# Values of clip.precision, and what a GPU's matrix products are then computed in.
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}


def pick(name: str, threads: int) -> torch.device:
    """The device called `name` ("auto": CUDA where there is one), with `threads` CPU threads.

    Raises:
        UserError: torch cannot use the GPU that is there, or the one that was asked for.
    """
    torch.set_num_threads(threads)
    if name != "cpu":
        gpus.claim()
    if name == "auto":
        name = "cuda" if sees_gpu() else "cpu"
    elif name == "cuda" and not sees_gpu():
        raise UserError("There is no GPU for --device cuda; leave it out, or give --device cpu.")
    if name == "cpu":
        keep_big_buffers()
    return torch.device(name)


def cores_in_use(threads: int) -> str:
    """How many cores a job uses, and why not all of this machine's."""
    cores = len(os.sched_getaffinity(0))
    if threads >= cores:
        return f"{threads} threads on {cores} cores, all that this machine gives it"
    return (
        f"{threads} threads on {cores} cores: what -j or --cores of snakemake, threads of the "
        "configuration and jobs beside it leave (--threads)"
    )


def sees_gpu() -> bool:
    """Whether torch can use a GPU; UserError where NVIDIA's driver shows one that it cannot."""
    if torch.cuda.is_available():
        return True
    gpus.refuse_unusable(torch.__version__, torch.version.cuda, sees_none=True)
    return False


def check_precision(device: torch.device, precision: str) -> None:
    """Raise UserError where `precision` is unknown, or is bf16 on a card that only emulates it."""
    if precision not in PRECISIONS:
        raise UserError(f"clip.precision {precision!r} is none of {', '.join(PRECISIONS)}.")
    if (
        device.type == "cuda"
        and precision == "bf16"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError(
            f"clip.precision is bf16, which the card {torch.cuda.get_device_name(device)} cannot "
            "compute in; set it to fp16 or float32."
        )


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`; a GPU is not waited for, nor does it wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast(
    device: torch.device, precision: str = "bf16"
) -> contextlib.AbstractContextManager[None]:
    """Autocast to bf16 or fp16 on CUDA; does nothing for float32 or on other devices."""
    if device.type == "cuda" and precision != "float32":
        return torch.autocast("cuda", dtype=PRECISIONS[precision])
    return contextlib.nullcontext()
