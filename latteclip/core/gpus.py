"""One GPU for each job, where several jobs run on one machine. Nothing here touches CUDA.

python -m latteclip.core.gpus N COMMAND ...     # claims N GPUs for all processes of a command
"""

import contextlib
import ctypes
import fcntl
import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

log = logging.getLogger(__name__)
VISIBLE = "CUDA_VISIBLE_DEVICES"
CLAIMED = "LATTECLIP_GPUS"  # set for the processes of a job that has claimed its GPUs
PAUSE = 1.0  # seconds until a busy GPU is tried again
TIMEOUT = 60  # seconds in which nvidia-smi answers
NOT_FOUND = 6  # its exit status where there is no such GPU, or none at all
FREE = 1024  # MiB in use on a card that nobody computes on, at most
DEVICES = Path("/dev")
REPAIR = (
    "repair the driver (after a kernel update, reboot), or export CUDA_VISIBLE_DEVICES= for a run "
    "on the CPU"
)
# The oldest driver for each CUDA (NVIDIA, "CUDA Compatibility", minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# The oldest compute capability for which each CUDA has code, where torch was built for older ones.
OLDEST_CARD = {13: (7, 5)}  # Turing; CUDA 12 has Volta (V100) and Pascal
_locks: list[IO[str]] = []  # of this process, which end with it


def claim(n: int = 1) -> None:
    """Make n GPUs that no other job has claimed the only ones that this process sees.

    Waits until so many are free, and raises UserError if this process may use fewer. Does nothing
    without a GPU, where this job has claimed before, or in a process of `torchrun`, which has the
    GPU of its rank. Call it before CUDA is first used.
    """
    if {CLAIMED, "LOCAL_RANK"} & set(os.environ):
        return
    usable = visible()
    if not usable:
        if unlisted():
            log.warning(
                "A GPU is here, but nvidia-smi is not, so jobs cannot lock the GPU that they use: "
                "start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility."
            )
        return
    if len(usable) < n:
        within = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise UserError(f"{n} GPUs are wanted, but there are {len(usable)} to use{within}.")
    in_use = _memory_in_use()
    emptiest = sorted(usable, key=lambda name: in_use.get(usable[name], 0))
    chosen = _wait_for(n, {name: usable[name] for name in emptiest})
    memory = [f"{usable[name]} ({in_use.get(usable[name], '?')} MiB in use)" for name in chosen]
    log.info("This job uses %s.", ", ".join(memory))
    os.environ[CLAIMED] = ",".join(chosen)
    if len(usable) > 1 or VISIBLE in os.environ:
        os.environ[VISIBLE] = os.environ[CLAIMED]


def visible() -> dict[str, str]:
    """Return the GPUs that this process may use: their names in CUDA_VISIBLE_DEVICES, with UUIDs.

    Names are numbers, or beginnings of UUIDs of GPUs or their parts by MIG. As for CUDA, the first
    name that is none ends the list.
    """
    if hidden():
        return {}
    found = _uuids()
    if VISIBLE not in os.environ:
        return {name: name for uuid, parts in found.items() for name in parts or [uuid]}
    named = [name.strip() for name in os.environ[VISIBLE].split(",")]
    uuids = [_uuid_of(name, found) for name in named]
    return dict(zip(named, itertools.takewhile(bool, uuids), strict=False))


def hidden() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES names no GPU, as for a run on the CPU."""
    return not re.match(r"\d|GPU|MIG", os.environ.get(VISIBLE, "GPU").strip())


def unlisted() -> bool:
    """Return whether there are GPUs to use, but no nvidia-smi: containers may leave it out."""
    devices = DEVICES.glob("nvidia[0-9]*")
    return not hidden() and shutil.which("nvidia-smi") is None and any(devices)


def free() -> int:
    """Count the GPUs to use on which next to no memory is in use."""
    usable = visible()
    in_use = _memory_in_use() if usable else {}
    return sum(in_use.get(uuid, 0) <= FREE for uuid in usable.values())


def _memory_in_use() -> dict[str, int]:
    """Return the MiB in use on whole GPUs by UUID, as far as NVIDIA's tool says."""
    lines = _nvidia_smi("--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits")
    pairs = [line.partition(", ") for line in lines]
    return {uuid: int(used) for uuid, _, used in pairs if used.isdigit()}


def _uuid_of(name: str, found: Mapping[str, Sequence[str]]) -> str:
    """Return the UUID of a GPU or of a part of one, or nothing."""
    if name.isdigit():
        return next(itertools.islice(found, int(name), None), "")
    known = [*found, *itertools.chain(*found.values())]
    return next((uuid for uuid in known if name and uuid.startswith(name)), "")


def _uuids() -> dict[str, list[str]]:
    """Return the UUID of each GPU, in order, with those of its parts by MIG."""
    found: dict[str, list[str]] = {}
    for line in _nvidia_smi("--list-gpus"):
        if uuid := re.search(r"UUID: ([^)]+)", line):
            if line.startswith("GPU"):
                found[uuid[1]] = []
            else:
                found[list(found)[-1]].append(uuid[1])
    return found


def _nvidia_smi(*options: str) -> list[str]:
    """Return the lines of nvidia-smi, none where it is missing or finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        run = subprocess.run(
            ["nvidia-smi", *options], capture_output=True, text=True, check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"nvidia-smi does not answer in {TIMEOUT} s; {REPAIR}.") from None
    if run.returncode in (0, NOT_FOUND):
        return run.stdout.splitlines() if run.returncode == 0 else []
    reason = one_line(f"{run.stdout} {run.stderr}").rstrip(".")
    raise UserError(f"nvidia-smi fails with status {run.returncode} ({reason}); {REPAIR}.")


def refuse_unusable(torch_version: str, cuda: str | None, *, sees_none: bool = False) -> None:
    """Raise UserError where torch, built for `cuda` or the CPU, cannot use the visible GPUs.

    With `sees_none` torch has been asked, and sees no GPU.
    """
    if not visible():
        return
    driver = "".join(_nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")[:1])
    major = int((cuda or "0").partition(".")[0])
    if cuda is None:
        problem, remedy = "is a build for the CPU", "run make install KIND=cuda"
    elif card := _old_card(major):
        problem = f"was built for CUDA {cuda}, which has no code for {card}"
        remedy = "use a newer card, caption by a server (captioner.engine openai)"
    elif sees_none or _is_too_old(driver, major):
        oldest = f", which needs driver {OLDEST_DRIVER[major]}," if major in OLDEST_DRIVER else ""
        problem = f"was built for CUDA {cuda}{oldest} and cannot use a GPU"
        remedy = (
            f"update the driver, on a data-centre card add NVIDIA's cuda-compat-{major} to "
            "LD_LIBRARY_PATH"
        )
    else:
        return
    raise UserError(
        f"torch {torch_version} {problem}, but the NVIDIA driver {driver} shows a GPU; {remedy}, "
        f"or export {VISIBLE}= for a run on the CPU."
    )


def _is_too_old(driver: str, cuda: int) -> bool:
    """Return whether a driver, or the newer library of cuda-compat before it, is too old."""
    version = ctypes.c_int()
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("libcuda.so.1")
        if not library.cuDriverGetVersion(ctypes.byref(version)):  # makes no context
            return version.value // 1000 < cuda
    return int(driver.partition(".")[0] or 0) < OLDEST_DRIVER.get(cuda, 0)


def _old_card(cuda: int) -> str | None:
    """Return the first visible GPU that is too old for a version of CUDA."""
    usable = visible().values()
    oldest = OLDEST_CARD.get(cuda, (0, 0))
    for line in _nvidia_smi("--query-gpu=uuid,compute_cap,name", "--format=csv,noheader"):
        if found := re.fullmatch(r"(\S+), (\d+)\.(\d+), (.+)", line):
            uuid, major, minor, name = found.groups()
            if uuid in usable and (int(major), int(minor)) < oldest:
                return f"{name} (compute capability {major}.{minor})"
    return None


def _wait_for(n: int, usable: Mapping[str, str]) -> list[str]:
    """Lock n GPUs, all at once, so that no two jobs wait for each other."""
    if not (chosen := _lock(n, usable)):
        log.info(
            "Waiting for %s of %s GPUs, which other jobs use; %s=shared does not wait.",
            *(n, len(usable), CLAIMED),
        )
    while not chosen:
        time.sleep(PAUSE)
        chosen = _lock(n, usable)
    return chosen


def _lock(n: int, usable: Mapping[str, str]) -> list[str]:
    """Lock the first n GPUs that are free. If they are fewer, lock none."""
    taken: dict[str, IO[str]] = {}
    for name, uuid in usable.items():
        if len(taken) < n and (file := _lock_file(uuid)):
            taken[name] = file
    if len(taken) < n:
        for file in taken.values():
            file.close()
        return []
    _locks.extend(taken.values())
    return list(taken)


def _lock_file(uuid: str) -> IO[str] | None:
    """Lock the file of a GPU. Return None if another process has it."""
    name = f"latteclip-{os.getuid()}-{uuid.replace('/', '-')}.lock"  # old names of MIG have slashes
    file = (Path(tempfile.gettempdir()) / name).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def missing_compiler() -> str | None:
    """Return a sentence where Triton lacks a C compiler or Python's headers."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if any(map(shutil.which, compilers)) and Path(_python_headers(), "Python.h").is_file():
        return None
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (
        "vLLM and torch.compile compile a small piece of C when they first use a GPU, which takes "
        f"the C compiler {' or '.join(compilers)} and Python's headers; run apt install gcc "
        f"{python}-dev (Debian, Ubuntu) or dnf install gcc {python}-devel (Fedora, RHEL)."
    )


def _python_headers() -> str:
    """Return the folder of Python's headers, which Debian's own scheme lacks."""
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    return sysconfig.get_paths(scheme)["include"]


def main(arguments: Sequence[str]) -> None:
    """Claim GPUs and become the command that is to use them: N COMMAND ..."""
    n, *command = arguments
    claim(int(n))
    for file in _locks:
        os.set_inheritable(file.fileno(), True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
