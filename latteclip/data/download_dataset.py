"""List, download and check the datasets.

`resources/<dataset>/downloads/` holds a dataset's files as they came, `resources/<dataset>/data/`
their content. A downloaded file counts only with its checksum. The data folder appears whole or not
at all.
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
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import requests
import urllib3
from filelock import FileLock

from latteclip import __version__
from latteclip.config import layers, model
from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError, first_line, full_disk
from latteclip.core.files import from_values, new_folder, replacing
from latteclip.core.hashing import digest
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress
from latteclip.data import splits
from latteclip.data.images import image_exists
from latteclip.data.splits import HeaderOrEnd, tar_entries

log = logging.getLogger(__name__)
RESOURCES = Path("resources")
DOWNLOADS = "downloads"  # the folder of files as they came, beside the data folder
PARTS = ".part"  # in the downloads folder: unfinished files
LOCK = ".lock"
REJECTED = ".rejected"  # appended to the name of a file with a wrong checksum
HUB_CHECKSUM = "hub"  # a checksum that the Hugging Face hub is asked for
RETRIES = 5  # of one file, each continues where the last attempt broke off
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two pieces
BUSY = frozenset({None, 408, 425, 429, 500, 502, 503, 504})  # HTTP states that may pass
CHUNK = 2**20
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Source:
    """A place to fetch a file from: a URL or a path, a file of Google Drive or of a hub's repo."""

    url: str = ""  # or a path of this machine
    drive: str = ""  # an id
    hf: str = ""  # a repo
    file: str = ""  # a path in the repo, or a glob
    revision: str | None = None
    type: str = "model"  # of the repo
    checksum: str | None = None  # where its bytes differ, or HUB_CHECKSUM

    def __str__(self) -> str:
        if self.drive:
            return f"https://drive.google.com/uc?id={self.drive}"
        repo = f"datasets/{self.hf}" if self.type == "dataset" else self.hf
        return f"https://huggingface.co/{repo}/{self.file}" if self.hf else self.url

    @property
    def name(self) -> str:
        """The file's name at the source, or a glob of it."""
        return self.drive or (self.file or self.url.split("?")[0]).rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Download:
    """A file of a dataset."""

    sources: list[str | Source]  # tried in order
    checksum: str | None = None  # md5:, sha256: or git_blob: and hexadecimal digits
    into: str = "."  # folder in the dataset's folder that takes the file or its content
    nested: list[str] = field(default_factory=list)  # names of archives inside the archive
    unpack: bool = True  # False: a shard, which is read as it is

    @property
    def places(self) -> list[Source]:
        """Its sources."""
        return [Source(spec) if isinstance(spec, str) else spec for spec in self.sources]


@dataclass(frozen=True)
class DownloadSettings:
    """The files of a dataset, and its terms."""

    downloads: dict[str, Download]  # by file name
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
    terms = f"licence: {settings.licence}\n  please cite: {settings.citation}"
    log.info("Dataset %s: %s\n  %s", dataset, settings.title or dataset, terms)
    if not any(folder.glob("[!.]*")):
        new_folder(output)  # it was not unpacked from files of this dataset
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = "Fetched files stay, and a rerun continues from there."
    with ending_in_order(unfinished), FileLock(folder / LOCK):  # two runs may want it at once
        files = {name: fetch(name, spec, folder) for name, spec in settings.downloads.items()}
        with replacing(output, overwrite=True) as data:
            for name, spec in settings.downloads.items():
                _place(files[name], name, spec, data / spec.into)
    log.info("Dataset %s is in %s.", dataset, output)


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
    """Return a verified file: put there by hand, fetched by an earlier run, or fetched now."""
    problems = []
    for path, checksum in candidates(name, download, folder):
        if is_verified(path, checksum):
            return path
        problems.append(_reject(path, checksum))
    for source in download.places:
        log.info("Fetching %s from %s.", name, source)
        try:
            return _fetch_from(source, name, download, folder)
        except Exception as error:  # of requests, gdown, the hub's client, httpx, or the system
            if full_disk(error):
                raise
            reason = str(error) if isinstance(error, UserError) else first_line(error)
            log.warning("%s failed: %s", source, reason)
            problems.append(f"{source}: {reason}")
    wanted = download.checksum or "it has no known checksum"
    raise UserError(
        f"{name} could not be fetched.\n  "
        + "\n  ".join(problems)
        + f"\nGet it in any other way, put it into {folder.resolve()} as {name} ({wanted}), and "
        "rerun."
    )


def candidates(name: str, download: Download, folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the files of a downloads folder that may be the wanted one, with known checksums."""
    known = {name: download.checksum}
    for source in download.places:
        if source.checksum:  # other bytes, under another name
            pinned = None if source.checksum == HUB_CHECKSUM else source.checksum
            known.setdefault(source.name, pinned)
    present = sorted(path for path in folder.iterdir() if path.is_file())
    for pattern, checksum in known.items():
        for path in present:
            if fnmatch.fnmatchcase(path.name.lower(), pattern.lower()):
                yield path, checksum


def is_verified(path: Path, checksum: str | None) -> bool:
    """Return whether a file has a checksum. Without any it counts, with a warning."""
    if checksum is None:
        log.warning("No checksum of %s is known: taken as it is.", path)
        return True
    return checksum_of(path, checksum) == checksum


def checksum_of(path: Path, like: str) -> str:
    """Return the checksum of a file, of the kind of another one: md5, sha256 or git_blob."""
    kind = like.partition(":")[0]
    state = hashlib.new("sha1" if kind == "git_blob" else kind)
    if kind == "git_blob":
        state.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: state)
    return f"{kind}:{state.hexdigest()}"


def _reject(path: Path, checksum: str | None) -> str:
    """Rename a file with a wrong checksum, and return the sentence about it."""
    found = checksum_of(path, str(checksum))
    aside = path.with_name(path.name + REJECTED)
    os.replace(path, aside)
    return f"{path} has the checksum {found} and not {checksum}; now {aside.name}"


def _fetch_from(source: Source, name: str, download: Download, folder: Path) -> Path:
    """Fetch from one source and verify."""
    checksum = source.checksum or download.checksum
    part = folder / PARTS / digest(str(source))[:16]
    # Only a checksum tells whether the halves of a continued file belong together.
    continues = part.exists() and checksum is not None
    if not continues:
        shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    fetched = part / source.name
    if source.hf:
        fetched, from_hub = _fetch_from_hub(source, part)
        checksum = from_hub if checksum == HUB_CHECKSUM else checksum
    elif source.drive:
        _fetch_from_drive(source.drive, fetched)
    elif source.url.startswith(("http://", "https://")):
        _fetch_url(source.url, fetched)
    else:
        shutil.copyfile(source.url, fetched)
    right = is_verified(fetched, checksum)
    if continues and not right:
        log.info("The continued file of %s is not whole. Fetching it again.", source)
        shutil.rmtree(part)
        return _fetch_from(source, name, download, folder)
    target = folder / (fetched.name if source.checksum else name)
    os.replace(fetched, target)
    shutil.rmtree(part)
    if not right:
        raise UserError(_reject(target, checksum))
    log.info("%s served %s (%d bytes).", source, target.name, target.stat().st_size)
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
            path.unlink()
            _continue_url(url, path)
            return
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


def _fetch_from_drive(file_id: str, path: Path) -> None:
    """Fetch a file that is shared on Google Drive."""
    import gdown

    options: dict[str, Any] = {
        "resume": True,
        "retries": RETRIES,
        "timeout": TIMEOUT,
        "use_cookies": False,
    }
    gdown.download(id=file_id, output=str(path), **options)


def _fetch_from_hub(source: Source, folder: Path) -> tuple[Path, str | None]:
    """Fetch a file of a Hugging Face repo, and return it with its checksum if that is asked for.

    HF_ENDPOINT and HF_TOKEN in the environment apply.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    repo: dict[str, Any] = {"revision": source.revision, "repo_type": source.type}
    name, checksum = source.file, None
    if "*" in name or source.checksum == HUB_CHECKSUM:
        tree = HfApi().list_repo_tree(source.hf, recursive=True, **repo)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        found = [path for path in files if fnmatch.fnmatchcase(path.lower(), name.lower())]
        if len(found) != 1:
            raise UserError(f"{name} fits {len(found)} files of the repo: {sorted(files)}")
        [name] = found
        lfs = files[name].lfs
        checksum = f"sha256:{lfs.sha256}" if lfs else f"git_blob:{files[name].blob_id}"
        log.info("%s is %s.", source, name)
    return Path(hf_hub_download(source.hf, name, local_dir=folder, **repo)), checksum


# --- unpacking -----------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file, known by its content, into an existing folder and nowhere else.

    Raises:
        UserError: the archive is damaged, cut off or unsafe.
    """
    progress = Progress(None, "B unpacked", scale=True)
    try:
        with archive.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        (_unpack_zip if is_zip else _unpack_tar)(archive, folder, progress)
    except UserError:
        raise
    except Exception as error:  # of tarfile, zipfile, a compression, or the system
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
            elif member.isdir():
                place.mkdir(parents=True, exist_ok=True)
            elif member.isreg() and not member.issparse() and (file := tar.extractfile(member)):
                place.parent.mkdir(parents=True, exist_ok=True)
                with file, place.open("wb") as unpacked:
                    shutil.copyfileobj(file, unpacked, CHUNK)
                progress.add(member.size)
            else:
                raise UserError(f"{archive} holds the device {member.name!r}: refused.")
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
        raise UserError(f"{archive} holds {name!r}, which leads out of its folder: refused.")


# --- `latteclip datasets` ------------------------------------------------------------------------


def command(words: Sequence[str]) -> str:
    """Return the output of `latteclip datasets [check [KEY ...]]`."""
    known = layers.datasets()
    model.check({"datasets": known})
    if not words:
        return _table(known)
    if words[0] != "check":
        raise UserError(model.unknown(f"latteclip datasets {words[0]}", words[0], ["check"]))
    for key in words[1:]:
        if key not in known:
            raise UserError(model.unknown(f"Dataset {key!r}", key, known))
    present = [key for key, values in known.items() if _folder(key, values).is_dir()]
    found = [
        (right, f"{key}: {line}")
        for key in words[1:] or present
        for right, line in _findings(key, known[key])
    ]
    lines = [line for _, line in sorted(found, key=lambda finding: finding[0])]
    if not all(right for right, _ in found):
        raise UserError("\n".join(["the files on the disk are not right:", *lines]))
    return "\n".join(lines) or "No dataset is on the disk yet."


def _folder(key: str, values: Mapping[str, Any]) -> Path:
    """Return the folder of a dataset's files."""
    return Path(values.get("source", {}).get("folder", RESOURCES / key / "data"))


def _table(known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return two lines per dataset: its facts in columns, and the paper to cite."""
    rows = [("key", "train", "test", "classes", "download", "present", "licence")]
    for key, values in known.items():
        counts = values.get("split", {}).get("counts", {})
        train, test, classes = (str(counts.get(name, "?")) for name in ("train", "test", "classes"))
        size = values.get("size", "?" if "downloads" in values.get("source", {}) else "none")
        present = "yes" if _folder(key, values).is_dir() else "no"
        rows.append((key, train, test, classes, size, present, values.get("licence", "?")))
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
        download = from_values(Download, spec)
        found = list(candidates(name, download, folder)) if folder.is_dir() else []
        if not found:
            yield False, f"{name} is not in {folder}; the next run fetches it"
        for path, checksum in found:
            right = is_verified(path, checksum)
            known = "has its checksum" if checksum else "has no known checksum"
            yield right, f"{path} {known if right else 'has a wrong checksum'}"
    settings = from_values(splits.SplitSettings, values.get("split", {}))
    try:
        images, split = splits.read_split(_folder(key, values), settings)
        clean_classnames(split.names, settings.classname_replace)
    except UserError as error:
        yield False, str(error)
        return
    counts = Counter(item.split for item in split.items)
    missing = [item.image_id for item in split.items if not image_exists(images / item.path)]
    lacking = f"{len(missing)} are missing, such as {missing[0]}" if missing else "none is missing"
    yield not missing, f"{dict(counts)} images of {len(split.names)} classes: {lacking}"
