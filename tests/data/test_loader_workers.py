import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.tiny import ROOT
from torch.utils.data import DataLoader, default_collate

from latteclip.core.errors import UserError
from latteclip.data.loader_workers import Shared, watched

# Within a small /dev/shm of its own: batches of 3 MiB each by two workers, the loader's or torch's.
LOADING = """
import sys
import torch
from latteclip.core.errors import UserError
from latteclip.data import loader
from latteclip.data.loader_workers import watched

class Pictures:
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return index, torch.full((3, 256, 256), float(index))

keys = [range(start, start + 4) for start in range(0, 32, 4)]
try:
    for _, images in watched(loader.loader(Pictures(), keys, workers=2, pinned=False)):
        print(len(images), flush=True)
except UserError as error:
    print(error)
"""


def in_a_container(shm):
    """What LOADING prints where /dev/shm has a size."""
    mount = f"mount -t tmpfs -o size={shm} tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    run = subprocess.run(
        [*command, sys.executable, "-c", LOADING],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,  # of one that waits for ever
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_small_shared_memory_is_one_sentence():
    *_, said = in_a_container("4m")
    assert said.startswith("/dev/shm has 4 MiB, ")
    assert "docker run --shm-size=8g" in said


def test_enough_shared_memory_holds_all_batches():
    assert in_a_container("64m") == ["4"] * 8


class Items:
    """Eight numbers; one of them does something to the process that asks for it."""

    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            self.act()
        return index, torch.zeros(2)


def loaded(act):
    items = DataLoader(
        Items(act),
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=Shared(default_collate),
    )
    return [int(index) for index, _ in watched(items)]


def kill(number):
    def act():
        os.kill(os.getpid(), number)
        time.sleep(60)

    return act


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGBUS, r"^/dev/shm has \d+ MiB, \d+ of them free"),
        (signal.SIGKILL, "A process that loads images was killed, mostly because memory ran out"),
    ],
)
def test_a_worker_that_is_killed_is_one_sentence(number, said):
    with pytest.raises(UserError, match=said):
        loaded(kill(number))


def test_errors_of_items_stay_what_they_are():
    def fail():
        raise RuntimeError("of the item itself")

    with pytest.raises(RuntimeError, match="of the item itself"):
        loaded(fail)


def test_batches_come_as_they_are():
    assert loaded(lambda: None) == list(range(8))
