"""SHA-256 digests of values and of files, and lists of sums as `sha256sum --check` reads them."""

import contextlib
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from latteclip.core.errors import UserError
from latteclip.core.files import irregular

SUMS = "SHA256SUMS"
UNSIGNED = {SUMS, "README.md"}  # people edit the latter
LARGEST = 2**20  # bytes of a list: ten thousand files
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each preceded by its length so that parts cannot run together."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """The same of parts that come one by one: millions of them need not be held at once."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def write_sums(folder: str | Path) -> None:
    """Write the sums of all files below `folder`: last, when no file changes any more."""
    sums = {name: sha256(Path(folder) / name) for name in _names(folder)}
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
    (Path(folder) / SUMS).write_text("".join(lines), encoding="utf-8")


def verify_sums(folder: str | Path, remedy: str) -> list[str]:
    """Compare the files below `folder` with its sums; nothing is done where it has none.

    Args:
        folder: perhaps with a file of sums.
        remedy: what to do about a damaged folder, for the message.

    Returns:
        The files that the sums do not name.

    Raises:
        UserError: the sums cannot be read, or a file is missing or another one than was written.
    """
    if not (Path(folder) / SUMS).exists():
        return []
    sums, there = _read(folder, remedy), _names(folder)
    wrong = [
        name
        for name, wanted in sums.items()
        if name not in there or sha256(Path(folder) / name) != wanted
    ]
    if wrong:
        raise UserError(
            f"{folder} is damaged: {', '.join(wrong)} is missing or not the file whose SHA-256 "
            f"stands in {SUMS}; {remedy}."
        )
    return sorted(there - sums.keys())


def verify_blob(path: str | Path) -> None:
    """Compare a file with its own name where that is a SHA-256, as in the hub's cache.

    The cache has links to its files; large ones are called so, small ones otherwise.

    Raises:
        UserError: the file is damaged.
    """
    file = Path(path).resolve()
    if re.fullmatch(r"[0-9a-f]{64}", file.name) and sha256(file) != file.name:
        raise UserError(
            f"{file} is damaged, for its SHA-256 is not its name; delete it, and {path}, and rerun."
        )


def sha256(path: str | Path) -> str:
    """The sum of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: str | Path, remedy: str) -> dict[str, str]:
    """Sums by name, of which there is at least one."""
    path = Path(folder) / SUMS
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        if not irregular(path) and path.stat().st_size <= LARGEST:
            lines = path.read_text(encoding="utf-8").splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    if not found or not all(found):
        raise UserError(f"{path} is not a list of SHA-256 sums; {remedy}.")
    return {match[2]: match[1] for match in found if match}


def _names(folder: str | Path) -> set[str]:
    """The regular files below a folder, relative to it; hidden ones are not part of it."""
    paths = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if path.name not in UNSIGNED and not any(part.startswith(".") for part in path.parts)
    }
