"""A module that worker processes can import, and a stand-in for nvidia-smi."""

import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing import forkserver


def square(number):
    return number * number


def die_among_many_bytes(number):
    """Of the second task the process dies; the others give more than a pipe takes."""
    time.sleep(0.3)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return bytes(200_000)


def status_of_fork(function, *arguments):
    """The exit status of a fork of this process that calls a function, negative for a signal."""

    def run():
        forkserver._forkserver._forkserver_pid = None  # that is no child of the fork
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


SHELL = shutil.which("sh", path=os.defpath)


def nvidia_smi(folder, uuids, memory=()):
    """Put the program into a folder of PATH: of 24 GiB each; `memory`: MiB in use on the first."""
    listed = "\n".join(f"echo {uuid}" for uuid in uuids)
    used = "\n".join(f"echo '{uuid}, {n}'" for uuid, n in zip(uuids, memory, strict=False))
    total = "echo 24564\n" * len(uuids)
    write(
        folder,
        f'case "$1" in\n--query-gpu=uuid) :\n{listed}\n;;\n'
        f"--query-gpu=memory.total) :\n{total};;\n"
        f"--query-gpu=uuid,memory.used) :\n{used}\n;;\n*) exit 6 ;;\nesac\n",
    )


def broken_nvidia_smi(folder):
    """Put a program into a folder that answers as NVIDIA's does after an update of the kernel."""
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    write(folder, f'echo "{said}"\necho\nexit 9\n')


def write(folder, commands):
    script = folder / "nvidia-smi"
    script.write_text(f"#!{SHELL}\n{commands}")
    script.chmod(0o755)
