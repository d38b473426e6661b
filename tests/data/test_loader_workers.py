import os
import subprocess
import sys

import pytest
from support.tiny import ROOT

# Batches of 3 MiB each by two workers; what item 9 does is put in.
LOADING = """
import os, signal, time, torch
from latteclip.core import worker_errors
from latteclip.core.errors import UserError
from latteclip.data import loader
from latteclip.data.loader_workers import watched

class Pictures:
    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 9:
            {act}
        return index, torch.full((3, 256, 256), float(index))

keys = [range(start, start + 4) for start in range(0, 32, 4)]
try:
    for _, images in watched(loader.loader(Pictures(), keys, workers=2, pinned=False)):
        print(len(images), flush=True)
except UserError as error:
    print(error)
except RuntimeError as error:  # raised by a signal, and not while a batch was waited for
    print(worker_errors.in_words(error))
"""
KILL = "os.kill(os.getpid(), signal.{}); time.sleep(60)"


def printed(act, *before):
    """What LOADING prints; it must come to its end."""
    run = subprocess.run(
        [*before, sys.executable, "-c", LOADING.format(act=act)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def in_a_container(shm):
    """The same where /dev/shm has a size."""
    mount = f"mount -t tmpfs -o size={shm} tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    return printed("pass", *command)


def test_a_small_shared_memory_is_one_sentence():
    *_, said = in_a_container("4m")
    assert said.startswith("/dev/shm has 4 MiB, ")
    assert "docker run --shm-size=8g" in said


def test_enough_shared_memory_holds_all_batches():
    assert in_a_container("64m") == ["4"] * 8


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("SIGBUS", "/dev/shm has "),
        ("SIGKILL", "A process that loads images was killed, mostly because memory ran out"),
    ],
)
def test_a_worker_that_is_killed_is_one_sentence(number, said):
    *_, last = printed(KILL.format(number))
    assert last.startswith(said)


def test_bad_input_that_a_worker_finds_ends_the_process_too():
    said = "Image 9 cannot be decoded."
    assert printed(f"raise UserError({said!r})")[-1] == said


def test_errors_of_items_stay_what_they_are():
    assert printed("raise RuntimeError('of the item itself')")[-1] == "None"
