"""Data-parallel training: one process per device, as `torchrun` starts them.

Every process computes the same loss over the whole batch. Only the encoding of images and texts is
shared out. Without `torchrun` there is one process, and every function here is a no-op.
Letters: P processes.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from latteclip.core import devices

Items = TypeVar("Items", bound=Sequence[Any] | torch.Tensor)


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
    """Return the number of processes P."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process, from 0. Process 0 writes the files."""
    return int(os.environ.get("RANK", 0))


def _bounds(n: int) -> list[int]:
    """Return the bounds [P + 1] of P shares of n items, whose sizes differ by one at most."""
    return [n * process // size() for process in range(size() + 1)]


def share(items: Items) -> Items:
    """Return this process's share, consecutive items."""
    bounds = _bounds(len(items))
    return items[bounds[rank()] : bounds[rank() + 1]]  # type: ignore[return-value]


def gather(part: torch.Tensor, n: int) -> torch.Tensor:
    """Concatenate the shares [m, D] of all processes to [n, D], with gradient.

    The gradient is right if every process computes the same loss from the result and gradients are
    then averaged over the processes (`average_gradients`).
    """
    if size() == 1:
        return part
    whole: torch.Tensor = _Gather.apply(part, n)
    return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, n: int) -> torch.Tensor:
        ctx.bounds = _bounds(n)
        sizes = [end - start for start, end in zip(ctx.bounds, ctx.bounds[1:], strict=False)]
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:m] for part, m in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        part = gradients[0][ctx.bounds[rank()] : ctx.bounds[rank() + 1]]
        return part * size(), None  # the average over processes divides by P again


def average_gradients(parameters: Iterable[torch.nn.Parameter], note: int = 0) -> int:
    """Average gradients over processes. A parameter without any gradient stays without.

    Returns:
        The largest `note` of all processes, sent in the same message.
    """
    if size() == 1:
        return note
    trained = list(parameters)
    notes = [*(int(p.grad is not None) for p in trained), note]
    largest = torch.tensor(notes)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    *used, note = largest.tolist()
    pending = []
    for parameter, anywhere in zip(trained, used, strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= size()
            pending.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in pending:
        work.wait()
    return note
