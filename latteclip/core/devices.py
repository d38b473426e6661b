"""Devices, precision and threads."""

import ctypes
import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from latteclip.core import gpus
from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

log = logging.getLogger(__name__)
NAMES = ("auto", "cpu", "cuda")
# Values of clip.precision, with the type of a GPU's matrix products.
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def pick(name: str, threads: int) -> torch.device:
    """Set the number of CPU threads, and return a device, or raise UserError if there is none."""
    if name not in NAMES:
        raise UserError(f"--device {one_line(name)} is none of {', '.join(NAMES)}.")
    torch.set_num_threads(threads)
    if name != "cpu":
        gpus.claim()
        has_gpu = torch.cuda.is_available()
        if not has_gpu:
            gpus.refuse_unusable(torch.__version__, torch.version.cuda)
        if not has_gpu and name == "cuda":
            raise UserError("--device cuda: torch sees no GPU here; give cpu or auto.")
        name = "cuda" if has_gpu else "cpu"
    if name == "cpu":
        if torch.version.cuda:
            log.warning(
                "This stage runs on the CPU, though torch is built for CUDA %s.",
                torch.version.cuda,
            )
        keep_big_buffers()
    return torch.device(name)


def check_precision(device: torch.device, precision: str) -> None:
    """Raise UserError where `precision` is bf16 on a card that only emulates it."""
    is_bf16 = device.type == "cuda" and precision == "bf16"
    if is_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"clip.precision is bf16, which the card {torch.cuda.get_device_name(device)} cannot "
            "compute in; set it to fp16 or float32."
        )


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device, asynchronously if it is a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast(device: torch.device, precision: str = "bf16") -> AbstractContextManager[None]:
    """Return autocast to bf16 or fp16 on CUDA, and nothing for float32 or on a CPU."""
    if device.type == "cuda" and precision != "float32":
        return torch.autocast("cuda", dtype=PRECISIONS[precision])
    return nullcontext()


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return a scaler of the loss: in fp16 on CUDA, where gradients underflow, else by 1."""
    is_fp16 = device.type == "cuda" and precision == "fp16"
    return torch.amp.GradScaler(device.type, enabled=is_fp16)


def keep_big_buffers() -> None:
    """Let glibc keep freed memory, up to its peak: training on a CPU is twice as fast or more."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 * 2**20)
