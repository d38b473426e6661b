"""List the datasets with their files and terms, and check the files on the disk.

A downloaded file counts only with its checksum, whether it was put there by hand or fetched.
"""

import fnmatch
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip.config import layers, model
from latteclip.config.model import unknown
from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError
from latteclip.core.files import leads_out, write_text
from latteclip.core.settings import from_values
from latteclip.data import splits
from latteclip.data.images import image_exists

log = logging.getLogger(__name__)
RESOURCES = Path("resources")
DOWNLOADS = "downloads"  # the folder of files as they came, beside the data folder
REJECTED = ".rejected"  # appended to the name of a file with a wrong checksum
HUB_CHECKSUM = "hub"  # a checksum that the Hugging Face hub is asked for
CHECK = "check"


@dataclass(frozen=True)
class Source:
    """One place to fetch a file from."""

    kind: str  # url, path, drive or hf
    place: str  # the URL, path, id or repo
    checksum: str | None = None  # where its bytes differ, or HUB_CHECKSUM
    file: str = ""  # a path in the repo, or a glob
    revision: str | None = None
    type: str = "model"  # of the repo

    @classmethod
    def parse(cls, spec: str | Mapping[str, Any]) -> "Source":
        """Return a source of a dataset's file.

        Raises:
            UserError: it is of no known kind.
        """
        if isinstance(spec, str):
            return cls("url" if spec.startswith(("http://", "https://")) else "path", spec)
        kind, needed = ("drive", {"drive"}) if "drive" in spec else ("hf", {"hf", "file"})
        optional = {"checksum"} if kind == "drive" else {"checksum", "revision", "type"}
        if not needed <= set(spec) <= needed | optional:
            raise UserError(
                f"Source {spec!r} is not one of: a URL, a path, {{hf: repo, file: name}}, "
                "{drive: id}."
            )
        return cls(kind, spec[kind], **{key: spec[key] for key in spec if key != kind})

    @property
    def label(self) -> str:
        """Its name in messages."""
        if self.kind == "drive":
            return f"https://drive.google.com/uc?id={self.place}"
        if self.kind == "hf":
            repo = f"datasets/{self.place}" if self.type == "dataset" else self.place
            return f"https://huggingface.co/{repo}/{self.file}"
        return self.place

    @property
    def name(self) -> str:
        """The file's name at the source, or a glob of it."""
        if self.kind == "drive":
            return self.place
        return (self.file or self.place.split("?")[0]).rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Download:
    """One file of a dataset."""

    sources: list[str | dict[str, Any]]  # tried in order
    checksum: str | None = None  # md5:, sha256: or git_blob: and hexadecimal digits
    into: str = "."  # folder in the dataset's folder that takes the file or its content
    nested: list[str] = field(default_factory=list)  # names of archives inside the archive
    unpack: bool = True  # False: a shard, which is read as it is

    def __post_init__(self) -> None:
        for key, names in (("into", [self.into]), ("nested", self.nested)):
            for name in filter(leads_out, names):
                raise UserError(
                    f"{key} {name!r} of a download leads out of the dataset's folder; name what "
                    "is inside."
                )

    @property
    def parsed_sources(self) -> list[Source]:
        """Its sources."""
        return [Source.parse(spec) for spec in self.sources]


@dataclass(frozen=True)
class Dataset:
    """One dataset, as its file describes it."""

    key: str
    values: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return Path(self.source.get("folder", RESOURCES / self.key / "data"))

    @property
    def source(self) -> dict[str, Any]:
        """Where its files come from; empty where only the command line names it."""
        return dict(self.values.get("source", {}))

    @property
    def split(self) -> splits.SplitSettings:
        """How its folder is read."""
        return from_values(splits.SplitSettings, self.values.get("split", {}))

    @property
    def files(self) -> dict[str, Download]:
        """Its downloads by name."""
        downloads = self.source.get("downloads", {})
        return {name: from_values(Download, spec) for name, spec in downloads.items()}


def command(words: Sequence[str]) -> str:
    """Return the output of `latteclip datasets [check [KEY ...]]`.

    Raises:
        UserError: a word is unknown, a dataset's file is invalid, or a file on the disk is wrong.
    """
    found = layers.datasets()
    model.check({"datasets": found})
    known = {key: Dataset(key, values) for key, values in found.items()}
    if not words:
        return table(known)
    if words[0] != CHECK:
        raise UserError(unknown(f"latteclip datasets {words[0]}", words[0], [CHECK]))
    for key in words[1:]:
        if key not in known:
            raise UserError(unknown(f"Dataset {key!r}", key, known))
    present = [key for key, dataset in known.items() if dataset.folder.is_dir()]
    report = "\n".join(check(known[key]) for key in words[1:] or present)
    return report or "No dataset is on the disk yet."


def table(datasets: dict[str, Dataset]) -> str:
    """Return two lines per dataset: its facts in columns, and the paper to cite."""
    head = ("key", "train", "test", "classes", "download", "present", "licence")
    rows = [head, *(_row(dataset) for dataset in datasets.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    cites = ["", *(dataset.values.get("citation", "") for dataset in datasets.values())]
    lines = []
    for row, cite in zip(rows, cites, strict=True):
        lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
        if cite:
            lines.append(f"    {cite}")
    return "\n".join(lines)


def _row(dataset: Dataset) -> tuple[str, ...]:
    counts = dataset.split.counts
    return (
        dataset.key,
        *(str(counts.get(name, "?")) for name in ("train", "test", "classes")),
        dataset.values.get("size", "none" if "downloads" not in dataset.source else "?"),
        "yes" if dataset.folder.is_dir() else "no",
        dataset.values.get("licence", "?"),
    )


def check(dataset: Dataset) -> str:
    """Verify checksums, counts, and that every image of the split exists.

    Returns:
        The findings, one per line.

    Raises:
        UserError: something is wrong; names all findings.
    """
    good: list[str] = []
    bad: list[str] = []
    for right, line in (*_check_files(dataset), *_check_folder(dataset)):
        (good if right else bad).append(f"{dataset.key}: {line}")
    if bad:
        raise UserError("\n".join(["the files on the disk are not right:", *bad, *good]))
    return "\n".join(good)


def _check_files(dataset: Dataset) -> Iterator[tuple[bool, str]]:
    """Yield whether each downloaded file exists and has its checksum."""
    folder = RESOURCES / dataset.key / DOWNLOADS
    for name, spec in dataset.files.items():
        found = list(candidates(name, spec, folder)) if folder.is_dir() else []
        if not found:
            yield False, f"{name} is not in {folder}; the next run fetches it"
        for path, checksums in found:
            right = is_verified(path, checksums)
            known = "has its checksum" if checksums else "has no known checksum"
            yield right, f"{path} {known if right else 'has a wrong checksum'}"


def _check_folder(dataset: Dataset) -> Iterator[tuple[bool, str]]:
    """Yield whether the split can be read, has the expected counts, and all its images."""
    try:
        images, split = splits.read_split(dataset.folder, dataset.split)
        clean_classnames(split.names, dataset.split.classname_replace)
    except UserError as error:
        yield False, str(error)
        return
    counts = Counter(item.split for item in split.items)
    expected = "as its file says" if dataset.split.counts else "its file expects no number"
    yield True, f"{dict(counts)} images of {len(split.names)} classes, {expected}"
    missing = [item.image_id for item in split.items if not image_exists(images / item.path)]
    if missing:
        yield False, f"{len(missing)} images are not in {images}, the first is {missing[0]}"
    else:
        yield True, f"every image is in {images}"


# --- checksums -----------------------------------------------------------------------------------


def candidates(name: str, download: Download, folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the files of a downloads folder that may be the wanted one, with known checksums."""
    known = {name: download.checksum}
    for source in download.parsed_sources:
        if source.checksum:  # other bytes, under another name
            known.setdefault(
                source.name, None if source.checksum == HUB_CHECKSUM else source.checksum
            )
    present = sorted(path for path in folder.iterdir() if path.is_file())
    for pattern, checksum in known.items():
        for path in present:
            if fnmatch.fnmatchcase(path.name.lower(), pattern.lower()):
                yield path, [c for c in (checksum, _noted_checksum(path)) if c]


def is_verified(path: Path, checksums: list[str]) -> bool:
    """Return whether a file has one of the checksums. Without any it counts, with a warning."""
    if not checksums:
        log.warning("No checksum of %s is known: taken as it is.", path)
        return True
    return any(matches(path, checksum) for checksum in checksums)


def matches(path: Path, checksum: str) -> bool:
    """Return whether a file has a checksum, written as kind:hexadecimal."""
    kind, _, wanted = checksum.partition(":")
    return _checksum_of(path, kind) == wanted


def reject(path: Path, checksums: list[str]) -> str:
    """Rename a file with a wrong checksum, and return the sentence about it."""
    kind = checksums[0].partition(":")[0]
    found = f"{kind}:{_checksum_of(path, kind)}"
    aside = path.with_name(path.name + REJECTED)
    os.replace(path, aside)
    _note(path).unlink(missing_ok=True)
    return f"{path} has the checksum {found} and not {' or '.join(checksums)}; now {aside.name}"


def note_checksum(path: Path, checksum: str | None) -> None:
    """Write a verified file's SHA-256 beside it, for files whose checksum no one else names."""
    if checksum is None or not checksum.startswith("sha256:"):
        checksum = f"sha256:{_checksum_of(path, 'sha256')}"
    write_text(_note(path), checksum)


def _noted_checksum(path: Path) -> str | None:
    note = _note(path)
    return note.read_text(encoding="utf-8") or None if note.exists() else None


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.checksum")


def _checksum_of(path: Path, kind: str) -> str:
    """Return the md5, sha256 or git_blob id of a file, in hexadecimal."""
    state = hashlib.new("sha1" if kind == "git_blob" else kind)
    if kind == "git_blob":
        state.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: state)
    return state.hexdigest()
