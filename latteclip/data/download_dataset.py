"""Fetch, verify and unpack a dataset's files.

`resources/<dataset>/downloads/` keeps the files as they came, `resources/<dataset>/data/` what they
hold. A file counts only after its checksum; the data folder appears whole or not at all.
"""

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import LeaseCompromise, SoftFileLease, Timeout

from latteclip.core.errors import UserError
from latteclip.core.files import digest, replacing, write_json
from latteclip.core.settings import from_values
from latteclip.core.signals import ending_in_order
from latteclip.data import archives, file_sources
from latteclip.data.transfer import FetchError

log = logging.getLogger(__name__)
DOWNLOADS = "downloads"  # beside the data folder
REJECTED = ".rejected"  # appended to the name of a file with a wrong checksum
# Seconds without a sign of life after which a run on another machine counts as gone: more than the
# minute for which NFS may hold back what it knows of a file.
LEASE = 120.0
POLL = 1.0  # seconds between two looks at what another run holds


@dataclass(frozen=True)
class Download:
    """One file of a dataset."""

    sources: list[str | dict[str, Any]]  # tried in order
    checksum: str | None = None  # md5:, sha256: or git_blob: and hexadecimal digits
    into: str = "."  # folder in the dataset's folder that takes the file or what it holds
    nested: list[str] = field(default_factory=list)  # names of archives inside the archive
    max_swell: float = archives.MAX_SWELL


@dataclass(frozen=True)
class DownloadSettings:
    """What a dataset is made of, and on whose terms."""

    downloads: dict[str, dict[str, Any]]  # file name -> Download
    title: str = ""
    licence: str = "not stated"
    citation: str = "not stated"

    @property
    def files(self) -> dict[str, Download]:
        """Downloads by file name."""
        return {name: from_values(Download, spec) for name, spec in self.downloads.items()}


def download_dataset(dataset: str, settings: DownloadSettings, output: str) -> None:
    """Make the data folder of a dataset; files that are already there are not fetched again.

    Raises:
        UserError: no source gives a file, or an archive is broken or unsafe.
    """
    folder = Path(output).parent / DOWNLOADS
    log.info(
        "Dataset %s: %s\n  licence: %s\n  please cite: %s",
        dataset,
        settings.title or dataset,
        settings.licence,
        settings.citation,
    )
    kept = "What was fetched is kept, and a rerun goes on from there."
    with ending_in_order(kept), _alone(folder):
        for stale in Path(output).parent.glob(f".{Path(output).name}.*.tmp"):
            shutil.rmtree(stale)  # of a run that was killed
        files = {name: fetch(name, download, folder) for name, download in settings.files.items()}
        with replacing(output) as data:
            for name, download in settings.files.items():
                _place(files[name], name, download, data / download.into)
    log.info("Dataset %s is in %s.", dataset, output)


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
    part.mkdir(parents=True, exist_ok=True)
    fetched = source.fetch(part)
    checksum = (fetched.checksum if own == file_sources.HUB else own) or download.checksum
    target = folder / (fetched.name if own else name)
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


def _place(file: Path, name: str, download: Download, folder: Path) -> None:
    """Unpack an archive, or copy any other file, into the data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if archives.is_archive(file.name):
        log.info("Unpacking %s.", file)
        archives.unpack(file, folder, nested=download.nested, max_swell=download.max_swell)
    else:
        shutil.copyfile(file, folder / name)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the downloads folder: two runs may want the same dataset at once.

    By a file with machine and process that is kept fresh, for NFS may lack other locks. It goes
    with the run, however that ends; a killed run's is taken over, at once on the same machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(
        folder / ".busy", lease_duration=LEASE, poll_interval=POLL, on_compromise=_stop
    )
    try:
        lease.acquire(timeout=0)
    except Timeout:
        owner = lease.owner
        whose = f"process {owner.pid} on {owner.hostname}" if owner else "another run"
        log.info("%s is busy in %s; waiting for it.", whose, folder)
        lease.acquire()
    try:
        yield
    finally:
        lease.release()


def _stop(lost: LeaseCompromise) -> None:
    """End this run: it was held up for so long that another one took the folder over."""
    log.error("%s was lost (%s): another run may be busy there.", lost.lock_file, lost.reason)
    os.kill(os.getpid(), signal.SIGTERM)
