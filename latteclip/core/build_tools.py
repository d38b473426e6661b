"""A C compiler and Python's headers: Triton compiles its driver when a GPU is first used."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from latteclip.core.errors import UserError


def refuse_missing() -> None:
    """Refuse to start what Triton would end.

    Raises:
        UserError: says which packages to install.
    """
    if sentence := missing():
        raise UserError(sentence)


def missing() -> str | None:
    """Return the sentence on what is missing, as Triton looks for it; None where nothing is."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    lacking = {}
    if shutil.which(os.environ.get("CC", "gcc")) is None and (
        "CC" in os.environ or shutil.which("clang") is None
    ):
        lacking["gcc"] = f"the C compiler {os.environ.get('CC', 'gcc')}"
    if not Path(_headers(), "Python.h").is_file():
        lacking[f"{python}-dev"] = f"Python's headers ({_headers()}/Python.h)"
    if not lacking:
        return None
    debian = " ".join(lacking)
    return (
        f"vLLM and torch.compile compile a small piece of C when they first use a GPU, and this "
        f"machine lacks {' and '.join(lacking.values())}; run apt install {debian} (Debian, Ubuntu)"
        f" or dnf install {debian.replace('-dev', '-devel')} (Fedora, RHEL)."
    )


def _headers() -> str:
    """Return the folder of Python's headers; Debian's own scheme names one that has none."""
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    return sysconfig.get_paths(scheme)["include"]
