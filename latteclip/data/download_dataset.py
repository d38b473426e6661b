"""List, download and check the datasets.

`resources/<dataset>/downloads/` holds a dataset's files as they came, `resources/<dataset>/data/`
their content. A file counts only with its checksum. The data folder appears whole or not at all.
"""

import fnmatch
import hashlib
import logging
import os
import shutil
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import requests
import urllib3
from filelock import FileLock

from latteclip import __version__
from latteclip.config import layers, model
from latteclip.config.sections.downloads import (
    DownloadSection,
    DownloadsSection,
    HubOrDriveFile,
    TermsSection,
)
from latteclip.config.sections.split import SplitSection
from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError, first_line, full_disk
from latteclip.core.files import from_values, link_or_copy, new_folder, replacing
from latteclip.core.hashing import digest
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress
from latteclip.data.images import image_exists
from latteclip.data.splits import HeaderOrEnd, read_split, tar_entries

log = logging.getLogger(__name__)
RESOURCES = Path("resources")
DOWNLOADS = "downloads"  # the folder of files as they came, beside the data folder
HUB_CHECKSUM = "hub"  # a checksum that the Hugging Face hub is asked for
RETRIES = 5  # retries of one file: each continues where the last attempt broke off
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two pieces
BUSY = frozenset({None, 408, 425, 429, 500, 502, 503, 504})  # HTTP states that may pass
CHUNK = 2**20
MAX_LINKS = 100_000  # links of a tar, at most: they are in memory until all files are there
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A URL or a path of this machine, or a file of a hub or drive.
Source = str | HubOrDriveFile


class DownloadSettings(DownloadsSection, TermsSection):
    """The files of a dataset by name, and its terms."""


def download_dataset(dataset: str, settings: DownloadSettings, output: str) -> None:
    """Make the data folder of a dataset. Files that exist already are not fetched again.

    Raises UserError where no source gives a file, an archive is broken or unsafe, or the folder
    holds files of something else.
    """
    folder = Path(output).parent / DOWNLOADS
    terms = f"licence: {settings.licence}\n  please cite: {settings.citation}"
    log.info("Dataset %s: %s\n  %s", dataset, settings.title or dataset, terms)
    if not any(folder.glob("[!.]*")):
        new_folder(output)  # it was not unpacked from files of this dataset
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = "Fetched files stay, and a rerun continues from there."
    # Two runs may want it at once.
    with ending_in_order(unfinished), FileLock(folder / ".lock"):
        files = {
            name: fetch(name, spec, folder) for name, spec in settings.downloads.items()
        }
        with replacing(output, overwrite=True) as data:
            for name, spec in settings.downloads.items():
                _place(files[name], name, spec, data / (spec.into or "."))
    log.info("Dataset %s is in %s.", dataset, output)


def _place(file: Path, name: str, download: DownloadSection, folder: Path) -> None:
    """Unpack an archive, or link or copy any other file, into the data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if download.unpack and file.name.lower().endswith(ARCHIVES):
        log.info("Unpacking %s.", file)
        unpack(file, folder)
        for pattern in download.nested:
            for inner in sorted(path for path in folder.rglob(pattern) if path.is_file()):
                unpack(inner, inner.parent)
                inner.unlink()
        return
    link_or_copy(file, folder / name)


def fetch(name: str, download: DownloadSection, folder: Path) -> Path:
    """Return a verified file: put there by hand, fetched by an earlier run, or fetched now."""
    problems = []
    for path, checksum in candidates(name, download, folder):
        wrong = wrong_checksum(path, checksum)
        if not wrong:
            return path
        problems.append(wrong)
    for source in download.sources or []:
        log.info("Fetching %s from %s.", name, address(source))
        try:
            return _fetch_from(source, name, download, folder)
        # Raised by requests, gdown, the hub's client, httpx, or the system.
        except Exception as error:
            if full_disk(error):
                raise
            reason = str(error) if isinstance(error, UserError) else first_line(error)
            log.warning("%s failed: %s", address(source), reason)
            problems.append(f"{address(source)}: {reason}")
    lines = "\n  ".join([f"{name} could not be fetched.", *problems])
    raise UserError(
        f"{lines}\nDownload it in another way, put it into {folder.resolve()} as {name} "
        f"({download.checksum or 'it has no known checksum'}), and rerun."
    )


def candidates(
    name: str, download: DownloadSection, folder: Path
) -> Iterator[tuple[Path, str | None]]:
    """Yield the files of a downloads folder that may be the wanted one, with known checksums."""
    known: dict[str, str | None] = {name: download.checksum}
    for source in download.sources or []:
        # Other bytes, under another name.
        if not isinstance(source, str) and source.checksum:
            pinned = None if source.checksum == HUB_CHECKSUM else source.checksum
            known.setdefault(_name(source), pinned)
    present = sorted(path for path in folder.iterdir() if path.is_file())
    for pattern, checksum in known.items():
        for path in present:
            if fnmatch.fnmatchcase(path.name.lower(), pattern.lower()):
                yield path, checksum


def address(source: Source) -> str:
    """Return the URL or path of a source."""
    if isinstance(source, str):
        return source
    if source.drive:
        return f"https://drive.google.com/file/d/{source.drive}"
    kind = "datasets/" if source.type == "dataset" else ""
    return f"https://huggingface.co/{kind}{source.hf}/{source.file}"


def _name(source: Source) -> str:
    """Return the file's name at the source, or a glob of it."""
    where = source.split("?")[0] if isinstance(source, str) else address(source)
    return where.rstrip("/").rpartition("/")[2]


def wrong_checksum(path: Path, checksum: str | None) -> str:
    """Return what is wrong with a file, "" where nothing is. Without a checksum it is accepted.

    The checksum is `md5:`, `sha256:` or `git_blob:` and hexadecimal digits.
    """
    if checksum is None:
        log.warning("No checksum of %s is known, so it is not verified.", path)
        return ""
    kind = checksum.partition(":")[0]
    state = hashlib.new("sha1" if kind == "git_blob" else kind)
    if kind == "git_blob":
        state.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: state)
    actual = f"{kind}:{state.hexdigest()}"
    return (
        "" if actual == checksum else f"{path} has the checksum {actual} and not {checksum}"
    )


def _fetch_from(source: Source, name: str, download: DownloadSection, folder: Path) -> Path:
    own_checksum = None if isinstance(source, str) else source.checksum
    checksum: str | None = own_checksum or download.checksum
    part = folder / ".part" / digest(address(source))[:16]  # an unfinished file
    # Nothing tells whether the halves of a continued file belong together.
    if checksum is None:
        shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    fetched = part / _name(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        _fetch_url(source, fetched)
    elif isinstance(source, str):
        shutil.copyfile(source, fetched)
    elif source.hf:
        fetched, from_hub = _fetch_from_hub(source, part)
        checksum = from_hub if checksum == HUB_CHECKSUM else checksum
    else:
        import gdown

        options: dict[str, Any] = {"resume": True, "retries": RETRIES, "timeout": TIMEOUT}
        gdown.download(id=source.drive, output=str(fetched), use_cookies=False, **options)
    if wrong := wrong_checksum(fetched, checksum):
        shutil.rmtree(part)
        raise UserError(f"{wrong}; a rerun fetches it again")
    target = folder / (fetched.name if own_checksum else name)
    os.replace(fetched, target)
    shutil.rmtree(part)
    log.info(
        "%s served %s (%d bytes).", address(source), target.name, target.stat().st_size
    )
    return target


def _fetch_url(url: str, path: Path) -> None:
    """Fetch a file over http or https. The proxy variables of the environment apply."""
    for attempt in range(RETRIES + 1):
        try:
            _continue_url(url, path)
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            response = getattr(error, "response", None)
            if attempt == RETRIES or getattr(response, "status_code", None) not in BUSY:
                raise
            log.info("%s: trying again.", first_line(error))
            time.sleep(2.0**attempt / 2)


def _continue_url(url: str, path: Path) -> None:
    """Fetch the rest of a file, or all of it where the server cannot continue."""
    done = path.stat().st_size if path.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": f"latteclip/{__version__}"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if done and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # it is whole, which its checksum decides
        response.raise_for_status()
        if response.status_code != requests.codes.partial:
            done = 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        progress = Progress(total, "B", done=done, scale=True)
        with path.open("ab" if done else "wb") as file:
            # As it comes: an archive that is sent as Content-Encoding gzip stays an archive.
            for piece in response.raw.stream(CHUNK, decode_content=False):
                file.write(piece)
                progress.add(len(piece))


def _fetch_from_hub(source: HubOrDriveFile, folder: Path) -> tuple[Path, str | None]:
    """Fetch a file of a Hugging Face repo, and return it with its checksum if that is asked for."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    repo: dict[str, Any] = {"revision": source.revision, "repo_type": source.type}
    hub_repo = str(source.hf)
    name = str(source.file)
    checksum = None
    if "*" in name or source.checksum == HUB_CHECKSUM:
        tree = HfApi().list_repo_tree(hub_repo, recursive=True, **repo)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        pattern = name.lower()
        fitting = [path for path in files if fnmatch.fnmatchcase(path.lower(), pattern)]
        if len(fitting) != 1:
            raise UserError(
                f"{name} fits {len(fitting)} files of the repo: {sorted(files)}"
            )
        [name] = fitting
        file = files[name]
        checksum = f"git_blob:{file.blob_id}"
        if file.lfs:
            checksum = f"sha256:{file.lfs.sha256}"
        log.info("%s is %s.", address(source), name)
    return Path(hf_hub_download(hub_repo, name, local_dir=folder, **repo)), checksum


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file, known by its content, into an existing folder and nowhere else.

    Raises UserError where the archive is damaged, cut off or unsafe.
    """
    progress = Progress(None, "B unpacked", scale=True)
    try:
        with archive.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        (_unpack_zip if is_zip else _unpack_tar)(archive, folder, progress)
    except UserError:
        raise
    except Exception as error:  # raised by tarfile, zipfile, a compression, or the system
        if full_disk(error):
            raise
        raise UserError(
            f"{archive} cannot be unpacked ({first_line(error)}): the file is broken; delete it "
            "and rerun."
        ) from None


def _unpack_zip(archive: Path, folder: Path, progress: Progress) -> None:
    """Unpack a zip. zipfile writes its links as plain files."""
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            _check_name(info.filename, archive)
            zipped.extract(info, folder)
            progress.add(info.file_size)


def _unpack_tar(archive: Path, folder: Path, progress: Progress) -> None:
    """Unpack a tar: all files first, so that none is written through a link.

    A symbolic link may only lead downwards. tarfile's own filter would not do: before Python
    3.11.13 chains of links with long names pass it (CVE-2025-4517).
    """
    links = []
    with tarfile.open(archive, tarinfo=HeaderOrEnd) as tar:
        for member in tar_entries(tar):
            _check_name(member.name, archive)
            place = folder / member.name
            if member.issym() or member.islnk():
                _check_name(member.linkname, archive)
                links.append(member)
                if len(links) > MAX_LINKS:
                    raise tarfile.ReadError(f"more than {MAX_LINKS} links")
            elif member.isdir():
                place.mkdir(parents=True, exist_ok=True)
            elif (
                member.isreg()
                and not member.issparse()
                and (file := tar.extractfile(member))
            ):
                place.parent.mkdir(parents=True, exist_ok=True)
                with file, place.open("wb") as unpacked:
                    shutil.copyfileobj(file, unpacked, CHUNK)
                progress.add(member.size)
            else:
                raise UserError(
                    f"{archive} contains the device {member.name!r}, which is refused."
                )
        while tar.fileobj and tar.fileobj.read(CHUNK):  # up to the last checksum
            pass
    for member in links:
        place = folder / member.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if member.issym():
            place.symlink_to(member.linkname)
        else:
            os.link(folder / member.linkname, place)


def _check_name(name: str, archive: Path) -> None:
    path = PureWindowsPath(name)  # takes both / and \ as separators
    if not name or path.drive or path.root or ".." in path.parts:
        raise UserError(
            f"{archive} contains {name!r}, which leads out of its folder and is refused."
        )


def datasets(check: Sequence[str] = (), /) -> str:
    """List the datasets, or verify what is on disk.

    Args:
        check: check, and the keys of datasets to verify (default: all that are on disk)
    """
    known = layers.datasets()
    model.check({"datasets": known})
    if not check:
        return _table(known)
    action, *keys = check
    if action != "check":
        raise UserError(model.unknown(f"latteclip datasets {action}", action, ["check"]))
    for key in keys:
        if key not in known:
            raise UserError(model.unknown(f"Dataset {key!r}", key, known))
    keys = keys or [key for key, values in known.items() if _folder(key, values).is_dir()]
    findings = [
        (ok, f"{key}: {line}") for key in keys for ok, line in _findings(key, known[key])
    ]
    fine = [line for ok, line in findings if ok]
    wrong = [line for ok, line in findings if not ok]
    if wrong:
        raise UserError("\n".join(["the files on the disk are not right:", *wrong, *fine]))
    return "\n".join(fine) or "No dataset is on the disk yet."


def _folder(key: str, values: Mapping[str, Any]) -> Path:
    return Path(values.get("source", {}).get("folder", RESOURCES / key / "data"))


def _table(known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return two lines per dataset: its facts in columns, and the paper to cite."""
    rows = [("key", "train", "test", "classes", "download", "present", "licence")]
    for key, values in known.items():
        counts = values.get("split", {}).get("counts", {})
        is_downloaded = "downloads" in values.get("source", {})
        row = (
            key,
            str(counts.get("train", "?")),
            str(counts.get("test", "?")),
            str(counts.get("classes", "?")),
            values.get("size", "?" if is_downloaded else "none"),
            "yes" if _folder(key, values).is_dir() else "no",
            values.get("licence", "?"),
        )
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
        if cite := known.get(row[0], {}).get("citation"):
            lines.append(f"    {cite}")
    return "\n".join(lines)


def _findings(key: str, values: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield whether each download has its checksum, the split its counts and all its images."""
    folder = RESOURCES / key / DOWNLOADS
    for name, spec in values.get("source", {}).get("downloads", {}).items():
        download = from_values(DownloadSection, spec)
        archives = list(candidates(name, download, folder)) if folder.is_dir() else []
        if not archives:
            yield False, f"{name} is not in {folder}; the next run fetches it"
        for path, checksum in archives:
            wrong = wrong_checksum(path, checksum)
            yield not wrong, wrong or f"{path} has {checksum or 'no known checksum'}"
    settings = from_values(SplitSection, values.get("split", {}))
    try:
        images, split = read_split(_folder(key, values), settings)
        clean_classnames(split.names, settings.classname_replace)
    except UserError as error:
        yield False, str(error)
        return
    missing = [
        item.image_id for item in split.items if not image_exists(images / item.path)
    ]
    lacking = (
        f"{len(missing)} are missing, such as {missing[0]}"
        if missing
        else "none is missing"
    )
    counts = dict(Counter(item.split for item in split.items))
    yield not missing, f"{counts} images of {len(split.names)} classes: {lacking}"
