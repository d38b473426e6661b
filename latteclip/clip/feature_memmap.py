"""Features of many images or texts in a memory-mapped file: N rows of width D."""

import os
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
import torch


class FeatureMemmap:
    """A table [N, D] of float32 zeros in a temporary file, which goes with the process.

    Rows are indexed like a tensor's, by slices, indices or masks. Reads return copies. OSError: the
    disk is full.
    """

    def __init__(self, n: int, width: int) -> None:
        self.shape = (n, width)
        self._file = tempfile.TemporaryFile(prefix="latteclip-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        size = n * width * np.dtype(np.float32).itemsize
        if size:  # allocated now: a mapped file that outgrows its disk would kill the process
            os.posix_fallocate(self._file.fileno(), 0, size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(self._mapped()[_index(rows)]))

    def __setitem__(self, rows: slice | torch.Tensor, values: torch.Tensor) -> None:
        self._mapped()[_index(rows)] = values.numpy()

    def _mapped(self) -> np.ndarray:
        """Map the table each time: pages of a mapping count as the process's memory."""
        if 0 in self.shape:
            return np.empty(self.shape, np.float32)
        return np.memmap(self._file, np.float32, "r+", shape=self.shape)


Features = torch.Tensor | FeatureMemmap  # [N, D], in memory or not


def parts(n: int, size: int) -> Iterator[slice]:
    """Return slices of N rows, `size` rows at a time."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _index(rows: slice | torch.Tensor) -> slice | np.ndarray:
    return rows if isinstance(rows, slice) else rows.numpy()
