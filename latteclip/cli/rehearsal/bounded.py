"""A program that is ended when its time is over, and all that it started with it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE = 2.5  # seconds after SIGTERM, and again after SIGKILL
PAUSE = 0.05  # seconds between looks


def run(
    command: Sequence[str], seconds: float, log: Path, environment: Mapping[str, str]
) -> int | None:
    """The exit status of a program, as subprocess gives it; None where its time was over.

    When this returns, the program's process group is gone: engines and workers included.

    Args:
        command: of the program.
        seconds: that it has, before up to twice GRACE for its end.
        log: file that gets what it says, on stdout and on stderr.
        environment: all of its variables.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the group of a process, with time to tidy up."""
    try:
        _send(process, signal.SIGTERM)
    finally:  # whatever interrupts the wait
        _send(process, signal.SIGKILL)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to what is left of the group, and wait until nothing is."""
    until = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
        while time.monotonic() < until:
            process.poll()  # or it would stay in the group as a zombie
            os.killpg(process.pid, 0)
            time.sleep(PAUSE)
