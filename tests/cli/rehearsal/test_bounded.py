import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latteclip.cli.rehearsal import bounded

# Says its own number and that of a child, and outlives SIGTERM, as the child does.
HANGING = "trap '' TERM; sleep 300 & echo $$ $!; wait; wait"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(bounded, "GRACE", 0.3)


def is_running(number):
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for(is_so):
    """Wait until something is so; a test hangs, and is seen to, where it never is."""
    while not is_so():
        time.sleep(0.05)


def run(tmp_path, script, seconds):
    status = bounded.run(["sh", "-c", script], seconds, tmp_path / "log", os.environ)
    return status, (tmp_path / "log").read_text()


def test_status_and_words_of_a_program(tmp_path):
    assert run(tmp_path, "echo out; echo err >&2; exit 3", 60) == (3, "out\nerr\n")


def test_a_program_that_a_signal_kills(tmp_path):
    assert run(tmp_path, "kill -9 $$", 60)[0] == -signal.SIGKILL


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    status, said = run(tmp_path, HANGING, 3)
    assert status is None
    numbers = said.split()
    assert len(numbers) == 2
    assert not any(map(is_running, numbers))


def test_it_may_tidy_up(tmp_path):
    status, said = run(tmp_path, "trap 'echo tidy; exit 1' TERM; sleep 300 & wait", 3)
    assert (status, said) == (None, "tidy\n")


def test_what_a_program_leaves_running_is_ended(tmp_path):
    status, said = run(tmp_path, "sleep 300 & echo $!", 60)
    assert status == 0
    assert not is_running(said.strip())


def test_a_signal_ends_the_program_as_well(tmp_path):
    log = tmp_path / "log"
    code = f"""
import os, pathlib
from latteclip.cli.rehearsal import bounded
from latteclip.core.signals import ending_in_order
with ending_in_order("Nothing is kept."):
    bounded.run(["sh", "-c", {HANGING!r}], 300, pathlib.Path({str(log)!r}), os.environ)
"""
    doctor = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: log.is_file() and log.read_text().endswith("\n"))
    doctor.terminate()
    assert doctor.wait() == 128 + signal.SIGTERM
    assert not any(map(is_running, log.read_text().split()))
