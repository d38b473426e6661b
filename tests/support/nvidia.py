"""A stand-in for nvidia-smi, which tells of GPUs that are not there."""

import os
import shutil

SHELL = shutil.which("sh", path=os.defpath)


def nvidia_smi(folder, gpus, driver="560.35.03", memory=(), capability="8.0"):
    """Put the program into a folder.

    Args:
        folder: one of PATH.
        gpus: UUID of each GPU -> the UUIDs of its parts by MIG.
        driver: its version.
        memory: MiB in use on the first GPU, the second, ...
        capability: of all of them.
    """
    lines = []
    for number, (uuid, parts) in enumerate(gpus.items()):
        lines.append(f"GPU {number}: NVIDIA A100-SXM4-40GB (UUID: {uuid})")
        lines += [
            f"  MIG 1g.5gb     Device  {i}: (UUID: {part})" for i, part in enumerate(parts)
        ]
    listed = "\n".join(f"echo '{line}'" for line in lines)
    used = "\n".join(f"echo '{uuid}, {n}'" for uuid, n in zip(gpus, memory, strict=False))
    cards = "\n".join(
        f"echo '{uuid}, {driver}, {capability}, NVIDIA card'" for uuid in gpus
    )
    write(
        folder,
        f'case "$1" in\n--query-gpu=uuid,memory.used) :\n{used}\n;;\n'
        f"--query-gpu=uuid,driver_version,compute_cap,name) :\n{cards}\n;;\n"
        f"--list-gpus|-L) :\n{listed}\n;;\n*) exit 6 ;;\nesac\n",
    )


def broken_nvidia_smi(folder):
    """Put a program into a folder that answers as NVIDIA's does after an update of the kernel."""
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    write(folder, f'echo "{said}"\necho\nexit 9\n')


def write(folder, commands):
    script = folder / "nvidia-smi"
    script.write_text(f"#!{SHELL}\n{commands}")
    script.chmod(0o755)
