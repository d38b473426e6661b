"""List and download the datasets.

`resources/<dataset>/downloads/` holds a dataset's files as they came, `resources/<dataset>/data/`
their content. What is fetched counts only with its checksum, and what a person puts there counts.
The data folder appears whole or not at all.
"""

import fnmatch
import hashlib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import requests
import urllib3
from filelock import FileLock
from tabulate import tabulate

from latteclip import __version__
from latteclip.config import layers
from latteclip.config.keys import (
    Config,
    DownloadSection,
    HubOrDriveFile,
    SourceSection,
    TermsSection,
)
from latteclip.config.schema import validate
from latteclip.core.errors import UserError, ending_in_order, first_line, full_disk
from latteclip.core.files import digest, link_or_copy, new_folder, replacing
from latteclip.core.terminal import Progress
from latteclip.data.archives import unpack
from latteclip.data.shards import SUFFIXES

log = logging.getLogger(__name__)
RESOURCES = Path("resources")
DOWNLOADS = "downloads"  # the folder of files as they came, beside the data folder
DATA_REPO = "datasets/"  # prefix of a repo of data on the Hugging Face hub
HUB_CHECKSUM = "hub"  # a checksum that the Hugging Face hub is asked for
RETRIES = 5  # retries of one file: each continues where the last attempt broke off
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two pieces
# HTTP states that may pass.
BUSY = frozenset({None, 408, 425, 429, 500, 502, 503, 504})
CHUNK = 2**20
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A URL or a path of this machine, or a file of a hub or drive.
Source = str | HubOrDriveFile


class DownloadSettings(TermsSection):
    """The files of a dataset by name, its terms, and whether they are shards."""

    source: SourceSection
    kind: str = "folders"  # as `SplitSection.kind`


def download_dataset(
    dataset: str, settings: DownloadSettings, output: str
) -> None:
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
    are_shards = settings.kind in SUFFIXES
    unfinished = "Fetched files stay, and a rerun continues from there."
    # Two runs may want it at once.
    with ending_in_order(unfinished), FileLock(folder / ".lock"):
        downloads = settings.source.downloads
        files = {
            name: fetch(name, spec, folder) for name, spec in downloads.items()
        }
        with replacing(output, overwrite=True) as data:
            data.mkdir()
            for name, file in files.items():
                if are_shards or not name.lower().endswith(ARCHIVES):
                    link_or_copy(file, data / name)
                    continue
                log.info("Unpacking %s.", file)
                unpack(file, data)
                for pattern in downloads[name].nested:
                    for inner in sorted(data.rglob(pattern)):
                        unpack(inner, inner.parent)
                        inner.unlink()
    log.info("Dataset %s is in %s.", dataset, output)


def fetch(name: str, download: DownloadSection, folder: Path) -> Path:
    """Return a file: put there by hand or by an earlier run, or fetched now and verified."""
    problems = []
    file = folder / name
    if file.is_file():
        return file
    for source in download.sources:
        address = _address(source)
        log.info("Fetching %s from %s.", name, address)
        try:
            _fetch_from(source, download.checksum, file)
            return file
        # Raised by requests, gdown, the hub's client, httpx, or the system.
        except Exception as error:
            if full_disk(error):
                raise
            problems.append(f"{address} failed: {first_line(error)}")
            log.warning("%s", problems[-1])
    lines = "\n  ".join([f"{name} could not be fetched.", *problems])
    raise UserError(
        f"{lines}\nDownload it in another way, put it into {folder.resolve()} as {name} "
        f"({download.checksum or 'it has no known checksum'}), and rerun."
    )


def _address(source: Source) -> str:
    """Return the URL or path of a source."""
    if isinstance(source, str):
        return source
    if source.drive:
        return f"https://drive.google.com/file/d/{source.drive}"
    return f"https://huggingface.co/{source.hf}/{source.file}"


def _fetch_from(source: Source, checksum: str | None, file: Path) -> None:
    """Fetch a file from a source and verify it. Without a checksum it is accepted."""
    # An unfinished file.
    part = file.parent / ".part" / digest(_address(source))[:16]
    # Nothing tells whether the halves of a continued file belong together.
    if checksum is None:
        shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    fetched = part / file.name
    if not isinstance(source, str):
        checksum = source.checksum or checksum
        if source.hf:
            fetched, of_hub = _fetch_from_hub(source, part)
            checksum = of_hub if checksum == HUB_CHECKSUM else checksum
        else:
            import gdown

            gdown.download(
                id=source.drive,
                output=str(fetched),
                resume=True,
                retries=RETRIES,
                timeout=TIMEOUT,
                use_cookies=False,
            )
    elif source.startswith(("http://", "https://")):
        _fetch_url(source, fetched)
    else:
        shutil.copyfile(source, fetched)
    if checksum is None:
        log.warning("No checksum of %s is known, so it is not verified.", fetched)
    elif (found := _checksum(fetched, checksum.partition(":")[0])) != checksum:
        shutil.rmtree(part)
        raise UserError(
            f"{fetched} has the checksum {found}, not {checksum}; a rerun fetches it again"
        )
    os.replace(fetched, file)
    shutil.rmtree(part)
    log.info("%s served %s.", _address(source), file.name)


def _checksum(path: Path, kind: str) -> str:
    """Return the checksum of a file as `md5:`, `sha256:` or `git_blob:` and hexadecimal digits."""
    state = hashlib.new("sha1" if kind == "git_blob" else kind)
    if kind == "git_blob":
        state.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: state)
    return f"{kind}:{state.hexdigest()}"


def _fetch_url(url: str, path: Path) -> None:
    """Fetch a file over http or https. The proxy variables of the environment apply."""
    for attempt in range(RETRIES + 1):
        try:
            _continue_url(url, path)
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            response = getattr(error, "response", None)
            if (
                attempt == RETRIES
                or getattr(response, "status_code", None) not in BUSY
            ):
                raise
            log.info("%s: trying again.", first_line(error))
            time.sleep(2.0**attempt / 2)


def _continue_url(url: str, path: Path) -> None:
    """Fetch the rest of a file, or all of it where the server cannot continue."""
    done = path.stat().st_size if path.exists() else 0
    headers = {
        "Accept-Encoding": "identity",
        "User-Agent": f"latteclip/{__version__}",
    }
    if done:
        headers["Range"] = f"bytes={done}-"
    with requests.get(
        url, headers=headers, stream=True, timeout=TIMEOUT
    ) as response:
        if (
            done
            and response.status_code
            == requests.codes.requested_range_not_satisfiable
        ):
            return  # it is whole, which its checksum decides
        response.raise_for_status()
        if response.status_code != requests.codes.partial:
            done = 0
        rest = int(response.headers.get("Content-Length", 0))
        progress = Progress(done + rest if rest else None, "B", done=done)
        with path.open("ab" if done else "wb") as file:
            # As it comes: an archive that is sent as Content-Encoding gzip stays an archive.
            for piece in response.raw.stream(CHUNK, decode_content=False):
                file.write(piece)
                progress.add(len(piece))


def _fetch_from_hub(source: HubOrDriveFile, folder: Path) -> tuple[Path, str]:
    """Fetch the one file of a Hugging Face repo that fits, and return it with its checksum."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    name = str(source.hf).removeprefix(DATA_REPO)
    kind = "model" if name == source.hf else "dataset"
    repo: dict[str, Any] = {"revision": source.revision, "repo_type": kind}
    tree = HfApi().list_repo_tree(name, recursive=True, **repo)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    pattern = str(source.file).lower()
    fitting = [
        path for path in files if fnmatch.fnmatchcase(path.lower(), pattern)
    ]
    if len(fitting) != 1:
        raise UserError(
            f"{pattern} fits {fitting} of the files of the repo: {[*files]}"
        )
    file = files[fitting[0]]
    checksum = (
        f"sha256:{file.lfs.sha256}" if file.lfs else f"git_blob:{file.blob_id}"
    )
    return Path(
        hf_hub_download(name, file.path, local_dir=folder, **repo)
    ), checksum


def datasets() -> str:
    """List the datasets, and the papers to cite."""
    rows = []
    cited = []
    for key, dataset in sorted(
        validate(Config, layers.defaults()).datasets.items()
    ):
        source = dataset.source
        folder = Path(source.folder or RESOURCES / key / "data")
        counts = dataset.split.counts
        rows.append(
            {
                "key": key,
                "train": counts.get("train", "?"),
                "test": counts.get("test", "?"),
                "classes": counts.get("classes", "?"),
                "download": dataset.size or ("?" if source.downloads else "none"),
                "present": "yes" if folder.is_dir() else "no",
                "licence": dataset.licence,
            }
        )
        cited.append(f"{key}: {dataset.citation}")
    return "\n".join(
        [tabulate(rows, headers="keys", tablefmt="plain"), "", *cited]
    )
