"""A stand-in for nvidia-smi, which tells of GPUs that are not there."""

import os
import shutil

SHELL = shutil.which("sh", path=os.defpath)


def nvidia_smi(folder, gpus, driver="560.35.03"):
    """Put the program into a folder.

    Args:
        folder: one of PATH.
        gpus: UUID of each GPU -> the UUIDs of its parts by MIG.
        driver: its version.
    """
    lines = []
    for number, (uuid, parts) in enumerate(gpus.items()):
        lines.append(f"GPU {number}: NVIDIA A100-SXM4-40GB (UUID: {uuid})")
        lines += [f"  MIG 1g.5gb     Device  {i}: (UUID: {part})" for i, part in enumerate(parts)]
    listed = "\n".join(f"echo '{line}'" for line in lines)
    script = folder / "nvidia-smi"
    script.write_text(
        f'#!{SHELL}\ncase "$1" in\n--query-gpu=driver_version) echo {driver} ;;\n'
        f"--list-gpus) :\n{listed}\n;;\n*) exit 6 ;;\nesac\n"
    )
    script.chmod(0o755)
