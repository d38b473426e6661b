import json
import os
import socket
import subprocess

import pytest

from latteclip.cli import locks

UNLOCK = "snakemake --unlock"


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A working folder that Snakemake has locked; notes a run, as if it had been so before."""
    monkeypatch.chdir(tmp_path)
    locks.LOCKS.mkdir(parents=True)
    lock = locks.LOCKS / "0.output.lock"
    lock.touch()

    def note(before_lock=False, **values):
        locks.note_run()
        known = json.loads(locks.NOTE.read_text())
        locks.NOTE.write_text(json.dumps(known | values))
        moved = locks.NOTE.stat().st_mtime + (10 if before_lock else -10)
        os.utime(lock, (moved, moved))

    return note


@pytest.fixture
def gone():
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_living_run_is_told_from_one_that_was_killed(locked, gone):
    locked()
    here = f"process {os.getpid()} on {socket.gethostname()}"
    assert here in locks.told(UNLOCK) and UNLOCK not in locks.told(UNLOCK)
    locked(process=gone)
    said = locks.told(UNLOCK)
    assert str(gone) in said and said.endswith(UNLOCK)


def test_a_later_process_of_the_same_number_is_not_the_run(locked):
    locked(started=1.0)
    assert locks.told(UNLOCK).endswith(UNLOCK)


def test_of_another_machine_the_place_is_told(locked, gone):
    locked(process=gone, host="elsewhere")
    said = locks.told(UNLOCK)
    assert "elsewhere" in said and UNLOCK in said
