"""One GPU for each job, where several jobs run on one machine. Nothing here touches CUDA."""

import contextlib
import ctypes
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
from collections.abc import Mapping
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
REPAIR = (
    "repair the driver (after a kernel update, reboot), or export CUDA_VISIBLE_DEVICES= for a run "
    "on the CPU"
)
# The oldest driver for each CUDA (NVIDIA, "CUDA Compatibility", minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# The oldest compute capability for which each CUDA has code, where torch was built for older ones.
OLDEST_CARD = {13: 7.5}  # Turing; CUDA 12 has Volta (V100) and Pascal
_locks: list[IO[str]] = []  # locks of this process, which end with it


def claim(n: int = 1, number: int | None = None) -> bool:
    """Make n GPUs that no other job has claimed the only ones that this process sees.

    `number` is the only one that will do, counted from 0 among those that this process may use.
    Waits until so many are free, and raises UserError if this process may use fewer. Returns False
    and does nothing without such a GPU, or where this job has claimed before. Call it before CUDA
    is first used.
    """
    if CLAIMED in os.environ:
        return False
    usable = visible()
    n_visible = len(usable)
    if number is not None:
        usable = dict([*usable.items()][number : number + 1])
    if not usable:
        return False
    if len(usable) < n:
        within = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise UserError(
            f"The job needs {n} GPUs, but only {len(usable)} can be used{within}; set "
            "captioner.tensor_parallel_size to fewer."
        )
    in_use = _memory_in_use()
    emptiest = dict(sorted(usable.items(), key=lambda gpu: in_use.get(gpu[1], 0)))
    if not (chosen := _lock(n, emptiest)):
        log.info(
            "Waiting for %s of %s GPUs, which other jobs use; %s=shared does not wait.",
            n,
            len(usable),
            CLAIMED,
        )
    while not chosen:
        time.sleep(PAUSE)
        chosen = _lock(n, emptiest)
    memory = [
        f"{usable[name]} ({in_use.get(usable[name], '?')} MiB in use)" for name in chosen
    ]
    log.info("This job uses %s.", ", ".join(memory))
    os.environ[CLAIMED] = ",".join(chosen)
    if n_visible > 1 or VISIBLE in os.environ:
        os.environ[VISIBLE] = os.environ[CLAIMED]
    return True


def _lock(n: int, usable: Mapping[str, str]) -> list[str]:
    """Lock the first n GPUs that are free, all at once. If they are fewer, lock none."""
    from filelock import lock_descriptor  # here: envs/check_driver.py does without

    locked: dict[str, IO[str]] = {}
    with contextlib.ExitStack() as files:
        for name, uuid in usable.items():
            # Old names of MIG have slashes.
            user = os.getuid() if hasattr(os, "getuid") else "user"
            lock = f"latteclip-{user}-{uuid.replace('/', '-')}.lock"
            # Appending, for another user may have made a link of this name.
            file = files.enter_context(Path(tempfile.gettempdir(), lock).open("a"))
            if lock_descriptor(file.fileno(), blocking=False):
                locked[name] = file
            if len(locked) == n:
                files.pop_all()
                _locks.extend(locked.values())
                return list(locked)
    return []


def visible() -> dict[str, str]:
    """Return the GPUs that this process may use: their names in CUDA_VISIBLE_DEVICES, with UUIDs.

    Names are numbers, or beginnings of UUIDs of GPUs or their parts by MIG. As for CUDA, the first
    name that is none ends the list. An empty list or -1 asks for the CPU.
    """
    if not re.match(r"\d|GPU|MIG", os.environ.get(VISIBLE, "GPU").strip()):
        return {}
    cards = _uuids()
    if VISIBLE not in os.environ:
        return {name: name for uuid, parts in cards.items() for name in parts or [uuid]}
    whole = list(cards)
    usable = {}
    known = [*whole, *itertools.chain(*cards.values())]
    for name in map(str.strip, os.environ[VISIBLE].split(",")):
        of_number = whole[int(name) :] if name.isdigit() else []
        of_name = [uuid for uuid in known if name and uuid.startswith(name)]
        if not (matching := of_number or of_name):
            break
        usable[name] = matching[0]
    return usable


def mistaken_part() -> str | None:
    """Return a sentence where vLLM would take the number of a part of a GPU (MIG) for a GPU's.

    vLLM asks the driver about the GPU of the number that a part in CUDA_VISIBLE_DEVICES has inside
    its own GPU: the second part of the first GPU passes for the second GPU, which may not exist.
    """
    names = [name.strip() for name in os.environ.get(VISIBLE, "").split(",")]
    if not any(name.startswith("MIG") for name in names):
        return None
    in_use = set(visible().values())
    for number, parts in enumerate(_uuids().values()):
        for number_inside, uuid in enumerate(parts):
            if uuid in in_use and number_inside != number:
                return (
                    f"vLLM takes {uuid}, part {number_inside} of GPU {number} (MIG), for GPU "
                    f"{number_inside}; set captioner.engine to transformers, let a server caption "
                    f"(captioner.engine openai), or export {VISIBLE}=... with part {number} of GPU "
                    f"{number} or a whole GPU."
                )
    return None


def free() -> int:
    """Count the GPUs to use on which next to no memory is in use."""
    usable = visible()
    in_use = _memory_in_use() if usable else {}
    return sum(in_use.get(uuid, 0) <= FREE for uuid in usable.values())


def _memory_in_use() -> dict[str, int]:
    """Return the MiB in use on whole GPUs by UUID, as far as NVIDIA's tool says."""
    return {uuid: int(used) for uuid, used in query("uuid,memory.used") if used.isdigit()}


def _uuids() -> dict[str, list[str]]:
    """Return the UUID of each GPU, in order, with those of its parts by MIG."""
    cards: dict[str, list[str]] = {}
    for line in _nvidia_smi("--list-gpus"):
        if uuid := re.search(r"UUID: ([^)]+)", line):
            if line.startswith("GPU"):
                cards[uuid[1]] = []
            else:
                cards[list(cards)[-1]].append(uuid[1])
    return cards


def _nvidia_smi(*options: str) -> list[str]:
    """Return the lines of nvidia-smi, none where it is missing or finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        run = subprocess.run(
            ["nvidia-smi", *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"nvidia-smi does not answer in {TIMEOUT} s; {REPAIR}.") from None
    if run.returncode in (0, NOT_FOUND):
        return run.stdout.splitlines() if run.returncode == 0 else []
    reason = one_line(f"{run.stdout} {run.stderr}").rstrip(".")
    raise UserError(f"nvidia-smi fails with status {run.returncode} ({reason}); {REPAIR}.")


def query(fields: str) -> list[list[str]]:
    """Return fields of each whole GPU."""
    lines = _nvidia_smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return [line.split(", ", fields.count(",")) for line in lines]


def refuse_unusable(
    torch_version: str, cuda: str | None, *, sees_none: bool = False
) -> None:
    """Raise UserError where torch, built for `cuda` or the CPU, cannot use a visible GPU."""
    usable = visible().values()
    if not usable:
        return
    cards = query("uuid,driver_version,compute_cap,name")
    driver = cards[0][1] if cards else ""
    major = int((cuda or "0").partition(".")[0])
    old = [
        f"{name} (compute capability {capability})"
        for uuid, _, capability, name in cards
        if uuid in usable and _is_below(capability, OLDEST_CARD.get(major, 0))
    ]
    if cuda is None:
        problem = "is a build for the CPU"
        remedy = "run make install KIND=cuda"
    elif old:
        problem = f"was built for CUDA {cuda}, which has no code for {old[0]}"
        remedy = "use a newer card, caption by a server (captioner.engine openai)"
    elif sees_none or _is_too_old(driver, major):
        oldest = (
            f", which needs driver {OLDEST_DRIVER[major]},"
            if major in OLDEST_DRIVER
            else ""
        )
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
    return _is_below(driver, OLDEST_DRIVER.get(cuda, 0))


def _is_below(version: str, oldest: float) -> bool:
    """Return whether a version such as 7.0 or 535.183.01 is older. An unknown one is not."""
    number = re.match(r"\d+(\.\d+)?", version)
    return number is not None and float(number[0]) < oldest


def missing_compiler() -> str | None:
    """Return a sentence where Triton lacks a C compiler or Python's headers."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    headers = Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h")
    if any(map(shutil.which, compilers)) and headers.is_file():
        return None
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (
        "vLLM and torch.compile compile a small piece of C when they first use a GPU, which takes "
        f"the C compiler {' or '.join(compilers)} and Python's headers; run apt install gcc "
        f"{python}-dev (Debian, Ubuntu) or dnf install gcc {python}-devel (Fedora, RHEL)."
    )
