"""A GPU of its own for each job, where several jobs run on one machine.

Snakemake's resource `gpu` has jobs take turns where it has a limit, as profiles/default gives it.
The locks here hold without one. A scheduler such as SLURM sees to that itself and sets
CUDA_VISIBLE_DEVICES.

    python -m latteclip.core.gpus N COMMAND ...     # claims N GPUs for all processes of a command
"""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from latteclip.core.errors import UserError

log = logging.getLogger(__name__)
VISIBLE = "CUDA_VISIBLE_DEVICES"
CLAIMED = "LATTECLIP_GPUS"  # tells the processes that a job starts that it has claimed its GPUs
PAUSE = 1.0  # seconds until a busy GPU is tried again
_held: list[IO[str]] = []  # locks are the process's own and end with it


def claim(n: int = 1) -> None:
    """Make n GPUs that no other job has claimed the only ones that this process sees.

    Waits until so many are free. To be called before CUDA is first used. Does nothing where a
    scheduler or this job itself has chosen, where a process of `torchrun` takes the GPU of its
    rank, or where there is no GPU.

    Raises:
        UserError: the machine has fewer than n.
    """
    if {VISIBLE, CLAIMED, "LOCAL_RANK"} & set(os.environ):
        return
    found = _uuids()
    if not found:
        return
    if len(found) < n:
        raise UserError(f"{n} GPUs are wanted, but this machine has {len(found)}.")
    chosen = _wait_for(n, found)
    os.environ[CLAIMED] = ",".join(chosen)
    if len(found) > 1:
        os.environ[VISIBLE] = os.environ[CLAIMED]


def _wait_for(n: int, found: Sequence[str]) -> list[str]:
    """The n GPUs that are free first, locked all at once: no two jobs wait for each other."""
    told = False
    while len(chosen := _lock(n, found)) < n:
        if not told:
            log.info(
                "Waiting for %s of %s GPUs, which other jobs use; %s=0 takes the first anyway.",
                *(n, len(found), VISIBLE),
            )
        told = True
        time.sleep(PAUSE)
    return chosen


def _uuids() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def _lock(n: int, found: Sequence[str]) -> list[str]:
    """The first n GPUs whose locks nobody held; where they are fewer, none is kept."""
    taken: dict[str, IO[str]] = {}
    for uuid in found:
        if len(taken) < n and (file := _lock_file(uuid)):
            taken[uuid] = file
    if len(taken) < n:
        for file in taken.values():
            file.close()
        return []
    _held.extend(taken.values())
    return list(taken)


def _lock_file(uuid: str) -> IO[str] | None:
    """The lock of a GPU, a file on this machine's own disk, if nobody holds it."""
    file = (Path(tempfile.gettempdir()) / f"latteclip-{os.getuid()}-{uuid}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def main(arguments: Sequence[str]) -> None:
    """Claim GPUs and become the command that is to use them.

    Args:
        arguments: how many GPUs, and the command with its arguments.
    """
    n, *command = arguments
    claim(int(n))
    for file in _held:
        os.set_inheritable(file.fileno(), True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
