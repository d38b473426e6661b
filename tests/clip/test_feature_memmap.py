import errno
import os

import pytest
import torch

from latteclip.clip import feature_memmap
from latteclip.clip.feature_memmap import FeatureMemmap

N, D = 23, 5


def test_rows_are_read_and_written_as_those_of_a_tensor_are():
    there, here = FeatureMemmap(N, D), torch.zeros(N, D)
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(N, generator=draw)
    for rows in (slice(0, 9), order[:4], slice(20, 30), order < 3, slice(5, 5)):
        values = torch.randn(here[rows].shape, generator=draw)
        there[rows] = here[rows] = values
    for rows in (slice(None), slice(3, 7), order, order > 9, torch.tensor([4, 4, 0])):
        assert torch.equal(there[rows], here[rows])
    assert (len(there), there.shape) == (N, (N, D))


def resident(kind):
    """KiB of this process, of one kind."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return int(next(line.split()[1] for line in file if line.startswith(kind)))


def test_rows_that_are_not_worked_with_take_no_memory():
    rows, before = FeatureMemmap(2**16, 256), resident("VmRSS")  # 64 MiB
    for start in range(0, len(rows), 2**12):
        rows[start : start + 2**12] = torch.ones(2**12, 256)
        assert rows[start : start + 2**12].sum() == 2**20
    assert resident("VmRSS") - before < 2**15


def test_a_full_disk_is_noticed_before_a_row_is_written(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(feature_memmap.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        FeatureMemmap(N, D)
