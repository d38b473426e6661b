"""Fetch, verify and unpack a dataset's files.

`resources/<dataset>/downloads/` keeps the files as they came, `resources/<dataset>/data/` what they
hold. The data folder appears whole or not at all.
"""

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import LeaseCompromise, SoftFileLease, Timeout

from latteclip.core.files import refuse_folder, replacing
from latteclip.core.settings import from_values
from latteclip.core.signals import ending_in_order
from latteclip.data import archives
from latteclip.data.download import DOWNLOADS, Download, fetch

log = logging.getLogger(__name__)
# Seconds without a sign of life after which a run on another machine counts as gone: more than the
# minute for which NFS may hold back what it knows of a file.
LEASE = 120.0
POLL = 1.0  # seconds between two looks at what another run holds


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
        UserError: no source gives a file, an archive is broken or unsafe, or the folder holds what
            is not of this dataset.
    """
    folder = Path(output).parent / DOWNLOADS
    log.info(
        "Dataset %s: %s\n  licence: %s\n  please cite: %s",
        dataset,
        settings.title or dataset,
        settings.licence,
        settings.citation,
    )
    if not any(folder.glob("*")):
        refuse_folder(output)  # what lies there was not unpacked from files of this dataset
    kept = "What was fetched is kept, and a rerun goes on from there."
    with ending_in_order(kept), _alone(folder):
        for stale in Path(output).parent.glob(f".{Path(output).name}.*.tmp"):
            shutil.rmtree(stale)  # of a run that was killed
        files = {name: fetch(name, download, folder) for name, download in settings.files.items()}
        with replacing(output, anew=True) as data:
            for name, download in settings.files.items():
                _place(files[name], name, download, data / download.into)
    log.info("Dataset %s is in %s.", dataset, output)


def _place(file: Path, name: str, download: Download, folder: Path) -> None:
    """Unpack an archive, or copy any other file, into the data folder; a shard is but linked."""
    folder.mkdir(parents=True, exist_ok=True)
    if not download.unpack:
        _link(file, folder / name)
    elif archives.is_archive(file.name):
        log.info("Unpacking %s.", file)
        archives.unpack(file, folder, nested=download.nested, max_swell=download.max_swell)
    else:
        shutil.copyfile(file, folder / name)


def _link(file: Path, target: Path) -> None:
    """Let a file lie in a second place, without taking its room twice where the disk can do so."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copyfile(file, target)


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
