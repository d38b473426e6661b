"""Devices: the CPU, or one GPU for each job where several jobs run on one machine."""

import contextlib
import ctypes
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
DEVICES = ("auto", "cpu", "cuda")
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Set for the processes of a job that has claimed its GPUs.
CLAIMED = "LATTECLIP_GPUS"
PAUSE = 1.0  # seconds until a busy GPU is tried again
TIMEOUT = 60  # seconds: a busy controller of a cluster answers slowly
NOT_FOUND = 6  # exit status of nvidia-smi where there is no GPU
# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_locks: list[IO[str]] = []  # locks of this process, which end with it


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick(name: str, threads: int) -> "torch.device":
    """Set the number of CPU threads, and return a device, or raise UserError if there is none."""
    import torch  # here: a dry run does without

    if name not in DEVICES:
        raise UserError(
            f"--device {one_line(name)} is none of {', '.join(DEVICES)}."
        )
    torch.set_num_threads(threads)
    if name != "cpu":
        claim()
        # Else convolutions in float32 keep 10 bits of their inputs, unlike matrix products.
        torch.backends.cudnn.allow_tf32 = False
        if torch.cuda.is_available():
            return torch.device("cuda")
        refuse_unusable(torch.__version__, torch.version.cuda)
        if name == "cuda":
            raise UserError(
                "--device cuda: torch sees no GPU here; give cpu or auto."
            )
    if torch.version.cuda:
        log.warning(
            "This stage runs on the CPU, though torch is built for CUDA %s.",
            torch.version.cuda,
        )
    keep_big_buffers()
    return torch.device("cpu")


def keep_big_buffers() -> None:
    """Let glibc keep freed memory, up to its peak: training on a CPU is twice as fast or more."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 * 2**20)


def claim(n: int = 1) -> None:
    """Make n GPUs that no other job has claimed the only ones that this process sees.

    Waits until so many are free, and raises UserError if this process may use fewer. Does nothing
    without a GPU, or where this job has claimed before. Call it before CUDA is first used.
    """
    usable = {} if CLAIMED in os.environ else visible()
    if not usable:
        return
    if len(usable) < n:
        raise UserError(
            f"The job needs {n} GPUs, but only {len(usable)} can be used ({VISIBLE}="
            f"{os.environ.get(VISIBLE, '')}); set captioner.tensor_parallel_size to fewer."
        )
    # Numbers are those of nvidia-smi, also for CUDA, which else begins with the fastest card.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    cards = query("uuid,memory.used")
    in_use = {uuid: int(used) for uuid, used in cards if used.isdigit()}  # MiB
    emptiest = sorted(usable.items(), key=lambda card: in_use.get(card[1], 0))
    if not (chosen := _lock(n, emptiest)):
        log.info(
            "Waiting for GPUs, which other jobs use; %s=shared does not wait.",
            CLAIMED,
        )
    while not chosen:
        time.sleep(PAUSE)
        chosen = _lock(n, emptiest)
    log.info("This job uses %s.", ", ".join(usable[name] for name in chosen))
    os.environ[CLAIMED] = ",".join(chosen)
    if len(usable) > 1 or VISIBLE in os.environ:
        os.environ[VISIBLE] = os.environ[CLAIMED]


def _lock(n: int, usable: Sequence[tuple[str, str]]) -> list[str]:
    """Lock the first n GPUs that are free, all at once. If they are fewer, lock none.

    GPUs have their name in CUDA_VISIBLE_DEVICES, and their UUID.
    """
    from filelock import lock_descriptor  # here: --help does without

    locked: dict[str, IO[str]] = {}
    with contextlib.ExitStack() as files:
        for name, uuid in usable:
            lock = f"latteclip-{os.getuid()}-{uuid.replace('/', '-')}.lock"
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

    Names are numbers or UUIDs, of which CUDA takes the beginning, and vLLM only the whole. An empty
    list or -1 asks for the CPU.
    """
    given = os.environ.get(VISIBLE)
    if given is not None and given.strip() in ("", "-1"):
        return {}
    uuids = [uuid for [uuid] in query("uuid")]
    if given is None or not uuids:
        return {uuid: uuid for uuid in uuids}
    numbered = {str(number): uuid for number, uuid in enumerate(uuids)}
    names = (
        next((uuid for uuid in uuids if name and uuid.startswith(name)), name)
        for name in map(str.strip, given.split(","))
    )
    return {name: numbered.get(name, name) for name in names}


def query(fields: str) -> list[list[str]]:
    """Return fields of each GPU by NVIDIA's tool. UserError: it fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    lines = output_of(
        "nvidia-smi",
        f"--query-gpu={fields}",
        "--format=csv,noheader,nounits",
        remedy="repair the driver (after a kernel update, reboot), or export "
        f"{VISIBLE}= for a run on the CPU.",
        nothing=NOT_FOUND,
    )
    return [line.split(", ", fields.count(",")) for line in lines]


def output_of(
    *command: str, remedy: str, timeout: float = TIMEOUT, nothing: int = 0
) -> list[str]:
    """Return the lines that a program prints, or raise UserError with the last one if it fails.

    With the exit status `nothing` it has nothing to print.
    """
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=True
        )
    except subprocess.TimeoutExpired:
        problem = f"no answer in {timeout} s"
    except OSError as error:
        problem = f"it does not start: {error.strerror}"
    except subprocess.CalledProcessError as error:
        if error.returncode == nothing:
            return []
        lines = (error.stderr.strip() or error.stdout.strip()).splitlines()
        problem = lines[-1].strip() if lines else f"exit status {error.returncode}"
    else:
        return run.stdout.splitlines()
    raise UserError(f"{Path(command[0]).name} fails ({problem}); {remedy}")


def refuse_unusable(torch_version: str, cuda: str | None) -> None:
    """Raise UserError for a GPU that torch, built for `cuda` or the CPU, cannot use."""
    if visible():
        raise UserError(
            f"torch {torch_version}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}, cannot use "
            "the GPU of nvidia-smi; update the NVIDIA driver, run make install KIND=cuda, or "
            f"export {VISIBLE}= for a run on the CPU."
        )


def missing_compiler() -> str | None:
    """Return a sentence where Triton lacks a C compiler or Python's headers."""
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("clang")
    if (
        compiler
        and Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h").is_file()
    ):
        return None
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (
        "vLLM and torch.compile need a C compiler and Python's headers on a GPU; run apt install "
        f"gcc {python}-dev, or dnf install gcc {python}-devel."
    )
