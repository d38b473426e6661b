"""Fetch the files of a dataset and verify them.

A file counts only after its checksum, whether it was put there by hand or fetched.
"""

import fnmatch
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.files import leads_out, write_json
from latteclip.core.hashing import digest
from latteclip.data import archives, file_sources
from latteclip.data.transfer import FetchError

log = logging.getLogger(__name__)
DOWNLOADS = "downloads"  # the folder of files as they came, beside the data folder
REJECTED = ".rejected"  # appended to the name of a file with a wrong checksum


@dataclass(frozen=True)
class Download:
    """One file of a dataset."""

    sources: list[str | dict[str, Any]]  # tried in order
    checksum: str | None = None  # md5:, sha256: or git_blob: and hexadecimal digits
    into: str = "."  # folder in the dataset's folder that takes the file or what it holds
    nested: list[str] = field(default_factory=list)  # names of archives inside the archive
    max_swell: float = archives.MAX_SWELL
    unpack: bool = True  # False: a shard, which is read as it is

    def __post_init__(self) -> None:
        for key, names in (("into", [self.into]), ("nested", self.nested)):
            for name in filter(leads_out, names):
                raise UserError(
                    f"{key} {name!r} of a download leads out of the dataset's folder; name what "
                    "is inside."
                )


def fetch(name: str, download: Download, folder: Path) -> Path:
    """The verified file: put there by hand, fetched by an earlier run, or fetched now.

    Args:
        name: of the file.
        download: where it comes from.
        folder: the downloads folder of the dataset.

    Raises:
        UserError: every source failed; names each one with its error.
    """
    problems = []
    for path, checksums in candidates(name, download, folder):
        if is_verified(path, checksums):
            log.info("%s is already there, its checksum is right.", path)
            return path
        problems.append(_set_aside(path, checksums))
    for spec in download.sources:
        source, own = file_sources.parse(spec)
        try:
            return _fetch_from(source, own, name, download, folder)
        except FetchError as error:
            log.warning("%s failed: %s", source.label, error)
            problems.append(f"{source.label}: {error}")
    wanted = download.checksum or "it has no known checksum"
    raise UserError(
        f"{name} could not be fetched.\n  "
        + "\n  ".join(problems)
        + f"\nGet it in any other way, put it into {folder.resolve()} as {name} ({wanted}), and "
        "rerun."
    )


def _fetch_from(
    source: file_sources.Source, own: str | None, name: str, download: Download, folder: Path
) -> Path:
    """Fetch from one source, verify, and keep a note of where the file is from."""
    log.info("Fetching %s from %s.", name, source.label)
    part = folder / ".part" / digest(source.label)[:16]
    if part.exists() and not (source.tells_versions or own or download.checksum):
        shutil.rmtree(part)  # nothing would tell old and new halves apart
    part.mkdir(parents=True, exist_ok=True)
    fetched = source.fetch(part)
    checksum = (fetched.checksum if own == file_sources.HUB else own) or download.checksum
    target = folder / (_plain(fetched.name) if own else name)
    os.replace(fetched.path, target)
    shutil.rmtree(part)
    if checksum is None:
        log.warning("No checksum of %s is known: taken as it is.", target)
    elif not matches(target, checksum):
        raise FetchError(_set_aside(target, [checksum]))
    sha256 = (checksum or "").removeprefix("sha256:")
    if len(sha256) != 64:
        sha256 = checksum_of(target, "sha256")
    write_json(_note(target), {"source": source.label, "checksum": checksum, "sha256": sha256})
    log.info("%s served %s (%d bytes).", source.label, target.name, target.stat().st_size)
    return target


def _plain(name: str) -> str:
    """`name`, if it is one of a file that can lie in the downloads folder; FetchError otherwise."""
    if leads_out(name) or name.startswith(".") or "/" in name or "\\" in name:
        raise FetchError(f"it has the name {name!r}, which no file to be kept may have")
    return name


def candidates(name: str, download: Download, folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Files in the downloads folder that may be the wanted one, each with its known checksums."""
    known = {name: download.checksum}
    for spec in download.sources:
        source, own = file_sources.parse(spec)
        if own:  # not the same bytes: a file of its own name
            known.setdefault(source.names, None if own == file_sources.HUB else own)
    here = sorted(path for path in folder.iterdir() if path.is_file())
    for pattern, checksum in known.items():
        for path in here:
            if not fnmatch.fnmatchcase(path.name.lower(), pattern.lower()):
                continue
            noted = _noted(path)
            yield path, [c for c in (checksum, f"sha256:{noted}" if noted else None) if c]


def is_verified(path: Path, checksums: list[str]) -> bool:
    """Whether the file has one of the checksums; with none it is taken, and a warning given."""
    if not checksums:
        log.warning("No checksum of %s is known: taken as it is.", path)
        return True
    return any(matches(path, checksum) for checksum in checksums)


def matches(path: Path, checksum: str) -> bool:
    """Whether a file has a checksum, written as kind:hexadecimal."""
    kind, _, wanted = checksum.partition(":")
    return checksum_of(path, kind) == wanted


def checksum_of(path: Path, kind: str) -> str:
    """The md5, sha256 or git_blob id of a file, in hexadecimal."""
    state = hashlib.new("sha1" if kind == "git_blob" else kind)
    if kind == "git_blob":
        state.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            state.update(chunk)
    return state.hexdigest()


def _set_aside(path: Path, checksums: list[str]) -> str:
    """Rename a file with a wrong checksum; returns the sentence about it."""
    kind = checksums[0].partition(":")[0]
    found = f"{kind}:{checksum_of(path, kind)}"
    aside = path.with_name(path.name + REJECTED)
    os.replace(path, aside)
    _note(path).unlink(missing_ok=True)
    return f"{path} has the checksum {found} and not {' or '.join(checksums)}; kept as {aside.name}"


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _noted(path: Path) -> str | None:
    """The SHA-256 that a file had when it was verified, or None."""
    try:
        return str(json.loads(_note(path).read_text(encoding="utf-8"))["sha256"])
    except (FileNotFoundError, KeyError, json.JSONDecodeError):
        return None
