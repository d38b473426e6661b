"""Data-parallel training: one process per device, as `torchrun` starts them.

Every process encodes its share of images and texts, and computes the loss of the whole batch.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from latteclip.core import devices


def start(device: str) -> None:
    """Join the other processes if `torchrun` started several. Each takes a GPU."""
    if size() == 1 or dist.is_initialized():
        return
    on_gpu = device != "cpu" and devices.sees_gpu()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Tensors of the CPU use gloo, so that messages between hosts do not wait for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")


def wait() -> None:
    """Wait until every process is here, or one has ended."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.barrier()


def finish() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process, from 0. Process 0 writes the files."""
    return int(os.environ.get("RANK", 0))


def _rows(n: int, process: int) -> slice:
    return slice(n * process // size(), n * (process + 1) // size())


def share(items: Any) -> Any:
    """Return this process's consecutive items. Sizes of shares differ by one at most."""
    return items[_rows(len(items), rank())]


def gather(part: torch.Tensor, n: int) -> torch.Tensor:
    """Concatenate the shares [m, D] of all processes to [n, D].

    Gradients are right if all compute the same loss, and `average_gradients` follows.
    """
    return part if size() == 1 else _Gather.apply(part, n)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, n: int) -> torch.Tensor:
        n_processes = size()
        ctx.rows = _rows(n, rank())
        longest = math.ceil(n / n_processes)
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part
        gathered = [torch.empty_like(padded) for _ in range(n_processes)]
        dist.all_gather(gathered, padded)
        parts = []
        for process, rows_and_padding in enumerate(gathered):
            rows = _rows(n, process)
            parts.append(rows_and_padding[: rows.stop - rows.start])
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][ctx.rows] * size(), None  # the average divides by P again


def average_gradients(parameters: Iterable[torch.nn.Parameter], note: int = 0) -> int:
    """Average the gradients that there are over processes, and return the largest `note`."""
    if size() == 1:
        return note
    trained = list(parameters)
    largest = torch.tensor([*(int(each.grad is not None) for each in trained), note])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    *used, note = largest.tolist()
    pending = []
    for parameter in itertools.compress(trained, used):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= size()
        pending.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in pending:
        work.wait()
    return note
