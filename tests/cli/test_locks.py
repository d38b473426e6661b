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


def test_without_a_lock_there_is_nothing_to_tell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locks.told(UNLOCK) is None
    locks.note_run()
    assert locks.told(UNLOCK) is None


def test_a_living_run_is_told_from_one_that_was_killed(locked, gone):
    locked()
    here = f"process {os.getpid()} on {socket.gethostname()}"
    assert locks.told(UNLOCK) == f"A run works in this folder: {here}, this machine."
    locked(process=gone)
    said = locks.told(UNLOCK)
    assert f"process {gone} on {socket.gethostname()}, is gone" in said
    assert said.endswith("Remove the lock: snakemake --unlock")


def test_a_later_process_of_the_same_number_is_not_the_run(locked):
    locked(started=1.0)
    assert "is gone" in locks.told(UNLOCK)


def test_of_another_machine_the_place_is_told(locked, gone):
    locked(process=gone, host="elsewhere")
    said = locks.told(UNLOCK)
    assert f"A run, process {gone} on elsewhere, holds" in said
    assert "If it no longer works there, remove the lock: snakemake --unlock" in said


@pytest.mark.parametrize("note", ["", "{}", '{"host": 1, "process": "x", "started": null}', "[]"])
def test_a_note_that_says_nothing_is_no_run(locked, note):
    locked()
    locks.NOTE.write_text(note)
    assert "If no snakemake works here, remove the lock: snakemake --unlock" in locks.told(UNLOCK)


def test_a_note_that_is_older_than_the_lock_is_of_a_run_before(locked, gone):
    locked(before_lock=True, process=gone)
    assert "just starting, or was killed then" in locks.told(UNLOCK)
