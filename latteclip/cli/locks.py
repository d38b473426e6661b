"""Snakemake's lock of a working folder: whether the run that took it still lives, and how to go on.

The lock does not say whose it is, so the workflow notes that when it starts.
"""

import socket
from pathlib import Path
from typing import Any

import psutil

from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.json_files import read_object

FOLDER = Path(".snakemake")
LOCKS = FOLDER / "locks"
NOTE = FOLDER / "latteclip_run.json"
KEYS = ("host", "process", "started")
CLOCK = 2.0  # seconds by which two answers to when a process began may differ


def note_run() -> None:
    """Note which process the lock of the current folder belongs to."""
    process = psutil.Process()
    values = (socket.gethostname(), process.pid, process.create_time())
    write_json(NOTE, dict(zip(KEYS, values, strict=True)))


def told(unlock: str) -> str | None:
    """The sentence on the lock of the current folder; None where there is none.

    Args:
        unlock: the command that removes it.
    """
    taken = [path.stat().st_mtime for path in LOCKS.glob("*.lock")]
    if not taken:
        return None
    # Older than the lock, it is of a run before.
    run = _noted() if NOTE.is_file() and NOTE.stat().st_mtime >= max(taken) else None
    if run is None:
        return (
            "A run that is just starting, or was killed then, holds Snakemake's lock of this "
            f"folder. If no snakemake works here, remove the lock: {unlock}"
        )
    whose = f"process {run['process']} on {run['host']}"
    if run["host"] != socket.gethostname():
        return (
            f"A run, {whose}, holds Snakemake's lock of this folder. If it no longer works there, "
            f"remove the lock: {unlock}"
        )
    if _is_running(run["process"], run["started"]):
        return f"A run works in this folder: {whose}, this machine."
    return f"The run that held Snakemake's lock, {whose}, is gone. Remove the lock: {unlock}"


def _noted() -> dict[str, Any] | None:
    try:
        run = read_object(NOTE, KEYS)
    except UserError:
        return None
    fits = isinstance(run["process"], int) and isinstance(run["started"], (int, float))
    return run if fits else None


def _is_running(number: int, started: float) -> bool:
    """Whether that process, and no later one of its number, is there and no zombie."""
    try:
        process = psutil.Process(number)
        began: float = process.create_time()
        return abs(began - started) <= CLOCK and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:  # another user's
        return True
