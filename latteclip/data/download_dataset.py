"""Fetch, verify and unpack a dataset's files.

`resources/<dataset>/downloads/` keeps the files as they came, `resources/<dataset>/data/` their
content. The data folder appears whole or not at all.
"""

import contextlib
import fnmatch
import logging
import os
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latteclip import __version__
from latteclip.core.errors import UserError, first_line, full_disk
from latteclip.core.files import leads_out, refuse_folder, replacing
from latteclip.core.hashing import digest
from latteclip.core.settings import from_values
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress
from latteclip.data import datasets
from latteclip.data.datasets import DOWNLOADS, HUB_CHECKSUM, Download, Source
from latteclip.data.shards import HeaderOrEnd, tar_entries

log = logging.getLogger(__name__)
PARTS = ".part"  # in the downloads folder: unfinished files
LOCK = ".lock"
RETRIES = 5  # of one file, each continues where the last attempt broke off
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two pieces
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP states that may pass
CHUNK = 2**20
FILE = "file"  # the name of an unfinished one
Fetched = tuple[Path, str, str | None]  # a file, the source's name for it, the hub's checksum of it
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class DownloadSettings:
    """The files of a dataset, and its terms."""

    downloads: dict[str, dict[str, Any]]  # file name -> Download
    title: str = ""
    licence: str = "not stated"
    citation: str = "not stated"


def download_dataset(dataset: str, settings: DownloadSettings, output: str) -> None:
    """Make the data folder of a dataset. Files that exist already are not fetched again.

    Raises:
        UserError: no source gives a file, an archive is broken or unsafe, or the folder holds files
            of something else.
    """
    folder = Path(output).parent / DOWNLOADS
    log.info(
        "Dataset %s: %s\n  licence: %s\n  please cite: %s",
        dataset,
        settings.title or dataset,
        settings.licence,
        settings.citation,
    )
    if not any(folder.glob("[!.]*")):
        refuse_folder(output)  # it was not unpacked from files of this dataset
    downloads = {name: from_values(Download, spec) for name, spec in settings.downloads.items()}
    unfinished = "Fetched files stay, and a rerun continues from there."
    with ending_in_order(unfinished), _locked(folder):
        for stale in Path(output).parent.glob(f".{Path(output).name}.*.tmp"):
            shutil.rmtree(stale)  # of a run that was killed
        files = {name: fetch(name, download, folder) for name, download in downloads.items()}
        with replacing(output, overwrite=True) as data:
            for name, download in downloads.items():
                _place(files[name], name, download, data / download.into)
    log.info("Dataset %s is in %s.", dataset, output)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the downloads folder, since two runs may want the same dataset at once."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Another run is busy in %s. Waiting for it.", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _place(file: Path, name: str, download: Download, folder: Path) -> None:
    """Unpack an archive, link a shard, or copy any other file into the data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not download.unpack:
        try:
            os.link(file.resolve(), folder / name)  # takes its room once, where the disk can do so
        except OSError:
            shutil.copyfile(file, folder / name)
    elif file.name.lower().endswith(ARCHIVES):
        log.info("Unpacking %s.", file)
        unpack(file, folder)
        for pattern in download.nested:
            for inner in sorted(path for path in folder.rglob(pattern) if path.is_file()):
                unpack(inner, inner.parent)
                inner.unlink()
    else:
        shutil.copyfile(file, folder / name)


# --- fetching ------------------------------------------------------------------------------------


def fetch(name: str, download: Download, folder: Path) -> Path:
    """Return a verified file: put there by hand, fetched by an earlier run, or fetched now.

    Args:
        name: of the file.
        download: where it comes from.
        folder: the downloads folder of the dataset.

    Raises:
        UserError: every source failed; names each one with its error.
    """
    problems = []
    for path, checksums in datasets.candidates(name, download, folder):
        if datasets.is_verified(path, checksums):
            log.info("%s exists, and its checksum is right.", path)
            return path
        problems.append(datasets.reject(path, checksums))
    for source in download.parsed_sources:
        log.info("Fetching %s from %s.", name, source.label)
        try:
            return _fetch_from(source, name, download.checksum, folder)
        except Exception as error:  # of requests, gdown, the hub's client, httpx, or the system
            if full_disk(error):
                raise
            reason = str(error) if isinstance(error, FetchError) else first_line(error)
            log.warning("%s failed: %s", source.label, reason)
            problems.append(f"{source.label}: {reason}")
    wanted = download.checksum or "it has no known checksum"
    raise UserError(
        f"{name} could not be fetched.\n  "
        + "\n  ".join(problems)
        + f"\nGet it in any other way, put it into {folder.resolve()} as {name} ({wanted}), and "
        "rerun."
    )


class FetchError(Exception):
    """A source does not give the file. The next one is tried."""


def _fetch_from(source: Source, name: str, checksum: str | None, folder: Path) -> Path:
    """Fetch from one source and verify."""
    checksum = source.checksum or checksum
    part = folder / PARTS / digest(source.label)[:16]
    # Only a checksum tells whether the halves of a continued file belong together.
    continues = part.exists() and checksum is not None
    if not continues:
        shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    fetched, own_name, known = FETCHERS[source.kind](source, part)
    if checksum == HUB_CHECKSUM:
        checksum = known
    right = checksum is None or datasets.matches(fetched, checksum)
    if continues and not right:
        log.info("The continued file of %s is not whole. Fetching it again.", source.label)
        shutil.rmtree(part)
        return _fetch_from(source, name, checksum, folder)
    target = folder / (_plain(own_name) if source.checksum else name)
    os.replace(fetched, target)
    shutil.rmtree(part)
    if checksum is None:
        log.warning("No checksum of %s is known: taken as it is.", target)
    elif not right:
        raise FetchError(datasets.reject(target, [checksum]))
    datasets.note_checksum(target, checksum)
    log.info("%s served %s (%d bytes).", source.label, target.name, target.stat().st_size)
    return target


def _plain(name: str) -> str:
    if leads_out(name) or name.startswith(".") or "/" in name or "\\" in name:
        raise FetchError(f"its name {name!r} is none that a file in the downloads may have")
    return name


def _copy(source: Source, folder: Path) -> Fetched:
    if not Path(source.place).is_file():
        raise FetchError("no such file")
    return Path(shutil.copyfile(source.place, folder / FILE)), source.name, None


def _fetch_url(source: Source, folder: Path) -> Fetched:
    """Fetch a file over http or https. The proxy variables of the environment apply."""
    import requests
    import urllib3

    for attempt in range(RETRIES + 1):
        try:
            return _continue_url(source.place, folder / FILE), source.name, None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            response = getattr(error, "response", None)
            if attempt == RETRIES or (response is not None and response.status_code not in BUSY):
                raise
            log.info("%s: trying again.", first_line(error))
            time.sleep(2.0**attempt / 2)
    raise AssertionError


def _continue_url(url: str, part: Path) -> Path:
    """Fetch the rest of a file, or all of it where the server cannot continue."""
    import requests

    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": f"latteclip/{__version__}"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if done and response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
            return _continue_url(url, part)
        response.raise_for_status()
        if response.status_code not in (requests.codes.ok, requests.codes.partial):
            raise FetchError(f"it answers with status {response.status_code} and no file")
        if response.status_code == requests.codes.ok:
            done = 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        progress = Progress(total, "B", done=done, scale=True)
        with part.open("ab" if done else "wb") as file:
            # As it comes: an archive that is sent as Content-Encoding gzip stays an archive.
            for piece in response.raw.stream(CHUNK, decode_content=False):
                file.write(piece)
                progress.add(len(piece))
    return part


def _fetch_from_drive(source: Source, folder: Path) -> Fetched:
    """Fetch a file shared on Google Drive."""
    import gdown
    from gdown.exceptions import DownloadError

    progress = Progress(None, "B", scale=True)

    def report(done: int, total: int | None) -> None:
        progress.total = total
        progress.add(done - progress.done)

    def download() -> None:
        gdown.download(
            id=source.place,
            output=str(folder / FILE),
            quiet=True,
            resume=True,
            retries=RETRIES,
            timeout=TIMEOUT,
            use_cookies=False,
            progress=report,
        )

    had_part = any(folder.iterdir())
    try:
        download()
    except DownloadError:
        if not had_part:
            raise
        for part in folder.iterdir():  # perhaps of another file, which cannot be continued
            part.unlink()
        download()
    return folder / FILE, source.name, None


def _fetch_from_hub(source: Source, folder: Path) -> Fetched:
    """Fetch a file of a Hugging Face repo. HF_ENDPOINT and HF_TOKEN in the environment apply."""
    from huggingface_hub import hf_hub_download

    file, checksum = _look_up(source)
    path = hf_hub_download(
        source.place,
        file,
        repo_type=source.type,
        revision=source.revision,
        local_dir=folder,
        tqdm_class=_progress_bar(),
    )
    return Path(path), Path(file).name, checksum


def _look_up(source: Source) -> tuple[str, str | None]:
    """Return a file's full name in the repo and, where it is asked for, the hub's checksum."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    if "*" not in source.file and source.checksum != HUB_CHECKSUM:
        return source.file, None
    tree = HfApi().list_repo_tree(
        source.place, recursive=True, revision=source.revision, repo_type=source.type
    )
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    found = [p for p in files if fnmatch.fnmatchcase(p.lower(), source.file.lower())]
    if len(found) != 1:
        raise FetchError(f"{source.file} fits {len(found)} files of the repo: {sorted(files)}")
    if found[0] != source.file:
        log.info("%s: its name was looked up, it is %s.", source.label, found[0])
    lfs = files[found[0]].lfs
    return found[0], f"sha256:{lfs.sha256}" if lfs else f"git_blob:{files[found[0]].blob_id}"


def _progress_bar() -> type:
    """Return a tqdm bar that logs steady lines."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            done = kwargs.get("initial") or 0
            self.lines = Progress(kwargs.get("total"), "B", done=done, scale=True)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.lines.add(int(n or 0))
            displayed: bool | None = super().update(n)
            return displayed

    return Bar


# Each fetches a file into a folder, where it continues what an earlier attempt left.
FETCHERS: dict[str, Callable[[Source, Path], Fetched]] = {
    "url": _fetch_url,
    "path": _copy,
    "drive": _fetch_from_drive,
    "hf": _fetch_from_hub,
}


# --- unpacking -----------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file, known by its content, into an existing folder and nowhere else.

    Raises:
        UserError: the archive is damaged, cut off or unsafe.
    """
    try:
        with archive.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        (_unpack_zip if is_zip else _unpack_tar)(archive, folder)
    except UserError:
        raise
    except Exception as error:  # of tarfile, zipfile, a compression, or the system
        if full_disk(error):
            raise
        raise UserError(
            f"{archive} cannot be unpacked ({first_line(error)}): the file is broken; delete it "
            "and rerun."
        ) from None


def _unpack_zip(archive: Path, folder: Path) -> None:
    progress = Progress(None, "B unpacked", scale=True)
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            _check_name(info.filename, archive)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{archive} holds the link or device {info.filename!r}: refused.")
            zipped.extract(info, folder)
            progress.add(info.file_size)


def _unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack a tar: all files first, so that none is written through a link.

    A symbolic link may only lead downwards. tarfile's own filter would not do: before Python
    3.11.13 chains of links with long names pass it (CVE-2025-4517).
    """
    progress = Progress(None, "B unpacked", scale=True)
    links = []
    with tarfile.open(archive, tarinfo=HeaderOrEnd) as tar:
        for member in tar_entries(tar):
            _check_name(member.name, archive)
            place = folder / member.name
            if member.issym() or member.islnk():
                links.append(member)
            elif member.isdir():
                place.mkdir(parents=True, exist_ok=True)
            elif (
                member.isreg()
                and not member.issparse()
                and (content := tar.extractfile(member)) is not None
            ):
                place.parent.mkdir(parents=True, exist_ok=True)
                with content, place.open("wb") as file:
                    shutil.copyfileobj(content, file, CHUNK)
                progress.add(member.size)
            else:
                raise UserError(f"{archive} holds the device {member.name!r}: refused.")
        while tar.fileobj and tar.fileobj.read(CHUNK):  # up to the last checksum
            pass
    for member in links:
        _check_name(member.linkname, archive)
        place = folder / member.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if member.issym():
            place.symlink_to(member.linkname)
        else:
            os.link(folder / member.linkname, place)


def _check_name(name: str, archive: Path) -> None:
    if leads_out(name):
        raise UserError(f"{archive} holds {name!r}, which leads out of its folder: refused.")
