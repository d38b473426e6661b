"""SHA-256 digests of values and of files."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from latteclip.core.errors import UserError, first_line
from latteclip.core.files import write_text

SUMS = "SHA256SUMS"
HASHED_WHOLE = 64 * 2**20  # files of a model up to this size are hashed whole
SAMPLES = 256  # blocks of a larger file that are read
SAMPLE = 64 * 2**10  # bytes of a block


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of parts, each preceded by its length so that they cannot run together."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Return the `digest` of parts that come one by one."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(model: str | Path) -> str:
    """Return a digest of a model's file, or of the files of its folder, wherever it is.

    Of large files, their size and blocks spread evenly over them count. No training leaves these
    unchanged. Hidden files do not count.
    """
    root = Path(model)
    parts = list[str | bytes]()
    try:
        for name, path in _visible_files(root) if root.is_dir() else [("", root)]:
            parts += [name, _sampled(path)]
    except OSError as error:
        raise UserError(f"Model {model} cannot be read ({first_line(error)}).") from None
    return f"sha256:{digest(*parts)}"


def _visible_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder that are not hidden, sorted, each after its name there."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "/." not in f"/{name}":
            yield name, path


def _sampled(path: Path) -> bytes:
    size = path.stat().st_size
    if size <= HASHED_WHOLE:
        return hashlib.sha256(path.read_bytes()).digest()
    state = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek((size - SAMPLE) * number // (SAMPLES - 1))
            state.update(file.read(SAMPLE))
    return state.digest()


def write_sums(folder: str | Path) -> None:
    """Write SHA256SUMS of the files below a folder, without hidden files and the README."""
    folder = Path(folder)
    lines = []
    for name, path in sorted(_visible_files(folder)):
        if name not in (SUMS, "README.md"):
            lines.append(f"{sha256(path)}  {name}\n")
    write_text(folder / SUMS, "".join(lines))
