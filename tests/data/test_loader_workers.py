import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import ROOT

from latteclip.core.errors import UserError
from latteclip.data import loader

# Batches of 3 MiB each by two workers; what item 9 does is put in.
LOADING = """
import os, signal, time, torch
from latteclip.core import errors
from latteclip.core.errors import UserError
from latteclip.data import loader
from latteclip.data.loader import watched

class Pictures:
    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 9:
            {act}
        return index, torch.full((3, 256, 256), float(index))

keys = [range(start, start + 4) for start in range(0, 32, 4)]
options = {{"workers": 2, "pinned": False, "item_bytes": {item_bytes}}}
try:
    for _, images in watched(loader.loader(Pictures(), keys, **options)):
        print(len(images), flush=True)
except UserError as error:
    print(error)
except RuntimeError as error:  # raised by a signal, and not while a batch was waited for
    print(errors.worker_failure(error))
"""
KILL = "os.kill(os.getpid(), signal.{}); time.sleep(60)"


def printed(act, *before, item_bytes=0):
    """What LOADING prints; it must come to its end."""
    run = subprocess.run(
        [*before, sys.executable, "-c", LOADING.format(act=act, item_bytes=item_bytes)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def in_a_container(shm, **options):
    """The same where /dev/shm has a size."""
    mount = f"mount -t tmpfs -o size={shm} tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    return printed("pass", *command, **options)


def test_a_small_shared_memory_is_one_sentence():
    *_, said = in_a_container("4m")
    assert "/dev/shm" in said


@pytest.mark.parametrize("shm", ["4m", "28m"])
def test_in_any_shared_memory_the_workers_are_as_many_as_it_has_room_for(shm):
    assert in_a_container(shm, item_bytes=3 * 256 * 256 * 4) == ["4"] * 8


@given(st.integers(1, 256), st.integers(1, 10**9), st.integers(0, 10**12))
def test_batches_ahead_take_a_quarter_of_the_free_shared_memory_at_most(wanted, size, free):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        workers, ahead = loader.bounded(wanted, size)
    assert workers == 0 or (ahead * workers + 1) * size * 4 <= free
    assert workers == wanted or (workers + 2) * size * 4 > free  # no more would fit


@pytest.mark.parametrize(("number", "said"), [("SIGBUS", "/dev/shm"), ("SIGKILL", "memory")])
def test_a_worker_that_is_killed_is_one_sentence(number, said):
    *_, last = printed(KILL.format(number))
    assert said in last


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError()])
def test_a_worker_that_is_gone_before_it_counts_as_dead_is_one_sentence(error):
    def batches():
        yield 1
        raise error

    found = loader.watched(batches())
    assert next(found) == 1
    with pytest.raises(UserError, match=r"compute\.cache_gib"):
        next(found)


def test_bad_input_that_a_worker_finds_ends_the_process_too():
    said = "Image 9 cannot be decoded."
    assert printed(f"raise UserError({said!r})")[-1] == said
