"""A GPU of its own for each job, where jobs of one machine share several.

A scheduler such as SLURM sees to that itself and sets CUDA_VISIBLE_DEVICES.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from latteclip.core.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[IO[str]] = []  # locks are the process's own and end with it


def claim(n: int = 1) -> None:
    """Make n GPUs that no other job has claimed the only ones that this process sees.

    To be called before CUDA is first used. Does nothing where a scheduler chose, where a process of
    `torchrun` takes the GPU of its rank, or where there are not several GPUs.

    Raises:
        UserError: fewer than n are free.
    """
    if VISIBLE in os.environ or "LOCAL_RANK" in os.environ:
        return
    found = _uuids()
    if len(found) < 2:
        return
    chosen: list[str] = []
    for uuid in found:
        if len(chosen) < n and _lock(uuid):
            chosen.append(uuid)
    if len(chosen) < n:
        raise UserError(
            f"{n} of the {len(found)} GPUs are wanted, but other jobs have taken all but "
            f"{len(chosen)}; give snakemake no larger gpu resource than there are GPUs."
        )
    os.environ[VISIBLE] = ",".join(chosen)


def _uuids() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def _lock(uuid: str) -> bool:
    """Take the lock of a GPU, a file on this machine's own disk, if nobody holds it."""
    file = (Path(tempfile.gettempdir()) / f"latteclip-{os.getuid()}-{uuid}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _held.append(file)
    return True
