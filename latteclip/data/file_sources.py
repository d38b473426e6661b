"""Where a file of a dataset comes from: the web, Hugging Face, Google Drive or this machine.

Each kind fetches one file into a folder and knows nothing of checksums. A broken transfer leaves
its part in that folder, and the next call goes on from there.
"""

import fnmatch
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latteclip.core.errors import UserError
from latteclip.core.terminal import Progress
from latteclip.data import drive
from latteclip.data.transfer import FetchError, Pace, apart, message_line, transfer

log = logging.getLogger(__name__)
HUB_WINDOW = 3600.0  # seconds: its client tells of 10 megabytes at a time
HUB = "hub"  # a checksum to be asked of the Hugging Face hub


@dataclass(frozen=True)
class Fetched:
    """A file that a source gave."""

    path: Path
    name: str  # what the source calls it
    checksum: str | None = None  # what the source says of it


class Source(Protocol):
    """One place to fetch a file from."""

    @property
    def label(self) -> str:
        """How messages name it."""

    @property
    def names(self) -> str:
        """A glob for the file's own name."""

    @property
    def tells_versions(self) -> bool:
        """Whether a part of a file is continued only while the source still has the same file."""

    def fetch(self, folder: Path) -> Fetched:
        """Fetch the file into `folder`; FetchError where that fails."""


@dataclass(frozen=True)
class Web:
    """A file at an http or https URL."""

    url: str
    tells_versions = True

    @property
    def label(self) -> str:
        return self.url

    @property
    def names(self) -> str:
        return self.url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]

    def fetch(self, folder: Path) -> Fetched:
        return Fetched(transfer(self.url, folder / "file"), self.names)


@dataclass(frozen=True)
class Drive:
    """A file shared on Google Drive."""

    id: str
    tells_versions = False

    @property
    def label(self) -> str:
        return f"https://drive.google.com/uc?id={self.id}"

    @property
    def names(self) -> str:
        return self.id

    def fetch(self, folder: Path) -> Fetched:
        return Fetched(drive.fetch(self.id, folder / "file"), self.names)


@dataclass(frozen=True)
class Local:
    """A file on this machine."""

    path: str
    tells_versions = True  # never in parts

    @property
    def label(self) -> str:
        return self.path

    @property
    def names(self) -> str:
        return Path(self.path).name

    def fetch(self, folder: Path) -> Fetched:
        if not Path(self.path).is_file():
            raise FetchError("no such file")
        shutil.copyfile(self.path, folder / "file")
        return Fetched(folder / "file", self.names)


@dataclass(frozen=True)
class Hub:
    """A file in a Hugging Face repo; HF_ENDPOINT and HF_TOKEN in the environment apply."""

    repo: str
    file: str  # a path in the repo, or a glob where its name is not known for sure
    revision: str | None = None
    type: str = "model"
    asks_checksum: bool = False
    tells_versions = True

    @property
    def label(self) -> str:
        kind = "datasets/" if self.type == "dataset" else ""
        return f"https://huggingface.co/{kind}{self.repo}/{self.file}"

    @property
    def names(self) -> str:
        return Path(self.file).name

    def fetch(self, folder: Path) -> Fetched:
        pace = Pace(HUB_WINDOW)
        try:
            return apart(lambda: self._fetch(folder, pace), pace.check)
        except (FetchError, UserError):
            raise
        except Exception as error:  # of this client, of httpx, of xet, or of the system
            raise FetchError(message_line(error)) from None

    def _fetch(self, folder: Path, pace: Pace) -> Fetched:
        from huggingface_hub import hf_hub_download

        file, checksum = self._look_up()
        path = hf_hub_download(
            self.repo,
            file,
            repo_type=self.type,
            revision=self.revision,
            local_dir=folder,
            tqdm_class=_hub_bar(pace),
        )
        return Fetched(Path(path), Path(file).name, checksum)

    def _look_up(self) -> tuple[str, str | None]:
        """The file's full name in the repo and, where it is asked for, the hub's own SHA-256."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        if "*" not in self.file and not self.asks_checksum:
            return self.file, None
        tree = HfApi().list_repo_tree(
            self.repo, recursive=True, revision=self.revision, repo_type=self.type
        )
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        found = [p for p in files if fnmatch.fnmatchcase(p.lower(), self.file.lower())]
        if len(found) != 1:
            raise FetchError(
                f"{self.file} fits {len(found)} files of the repo, which holds {sorted(files)}"
            )
        if found[0] != self.file:
            log.info("%s: its name was looked up, it is %s.", self.label, found[0])
        lfs = files[found[0]].lfs
        return found[0], f"sha256:{lfs.sha256}" if lfs else f"git_blob:{files[found[0]].blob_id}"


def parse(spec: str | Mapping[str, Any]) -> tuple[Source, str | None]:
    """A source as a dataset's file gives it, and its own checksum where it has one.

    Raises:
        UserError: it is none of the known kinds.
    """
    if isinstance(spec, str):
        return (Web(spec) if spec.startswith(("http://", "https://")) else Local(spec)), None
    values = dict(spec)
    checksum = values.pop("checksum", None)
    try:
        if "drive" in values:
            return Drive(id=values.pop("drive"), **values), checksum
        return Hub(repo=values.pop("hf"), asks_checksum=checksum == HUB, **values), checksum
    except (KeyError, TypeError):
        raise UserError(
            f"Source {spec!r} is not one of: a URL, a path, {{hf: repo, file: name}}, "
            "{drive: id}."
        ) from None


def _hub_bar(pace: Pace) -> type:
    """A tqdm bar for huggingface_hub that logs steady lines, and tells `pace` of the bytes."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self.lines = Progress(
                kwargs.get("total"), "B", done=kwargs.get("initial") or 0, scale=True
            )
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.lines.add(int(n or 0))
            pace.add(int(n or 0))
            shown: bool | None = super().update(n)
            return shown

    return Bar
