"""What datasets there are, on whose terms, and whether what lies on the disk is right.

Reads the datasets' files, those that are shipped and those of the working folder, and the folders
that the workflow writes there.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latteclip.config import layers, model
from latteclip.config.model import unknown
from latteclip.core.class_templates import clean_classnames
from latteclip.core.errors import UserError
from latteclip.core.settings import from_values
from latteclip.data import download, splits
from latteclip.data.images import image_exists

RESOURCES = Path("resources")
CHECK = "check"


@dataclass(frozen=True)
class Dataset:
    """One dataset, as its file says."""

    key: str
    values: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its files are, or will be."""
        return Path(self.source.get("folder", RESOURCES / self.key / "data"))

    @property
    def source(self) -> dict[str, Any]:
        """Where its files come from; nothing where only the command line says so."""
        return dict(self.values.get("source", {}))

    @property
    def split(self) -> splits.SplitSettings:
        """How its folder is read."""
        return from_values(splits.SplitSettings, self.values.get("split", {}))

    @property
    def files(self) -> dict[str, download.Download]:
        """What is downloaded for it, by name."""
        downloads = self.source.get("downloads", {})
        return {name: from_values(download.Download, spec) for name, spec in downloads.items()}


def command(words: Sequence[str]) -> str:
    """`latteclip datasets`, or `latteclip datasets check [KEY ...]`: what to print.

    Raises:
        UserError: a word is unknown, a dataset's file says what does not fit, or what is on the
            disk is wrong.
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
    """Two lines per dataset: its facts in columns, and what to cite."""
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
    """Verify checksums, counts, and that every image of the split is there.

    Returns:
        What was found to be right, one finding per line.

    Raises:
        UserError: what is wrong, one finding per line.
    """
    good: list[str] = []
    bad: list[str] = []
    for right, line in (*_check_files(dataset), *_check_folder(dataset)):
        (good if right else bad).append(f"{dataset.key}: {line}")
    if bad:
        raise UserError("\n".join(["what is on the disk is not right:", *bad, *good]))
    return "\n".join(good)


def _check_files(dataset: Dataset) -> Iterator[tuple[bool, str]]:
    """Whether each downloaded file is there and has its checksum."""
    folder = RESOURCES / dataset.key / download.DOWNLOADS
    for name, spec in dataset.files.items():
        found = list(download.candidates(name, spec, folder)) if folder.is_dir() else []
        if not found:
            yield False, f"{name} is not in {folder}; the next run fetches it"
        for path, checksums in found:
            right = download.is_verified(path, checksums)
            known = "has its checksum" if checksums else "has no known checksum"
            yield right, f"{path} {known if right else 'has a wrong checksum'}"


def _check_folder(dataset: Dataset) -> Iterator[tuple[bool, str]]:
    """Whether the split can be read, has the expected counts, and all its images."""
    try:
        images, split = splits.read_split(dataset.folder, dataset.split)
        clean_classnames(split.names, dataset.split.classname_replace)
    except UserError as error:
        yield False, str(error)
        return
    counts = Counter(item.split for item in split.items)
    said = "as its file says" if dataset.split.counts else "its file expects no number"
    yield True, f"{dict(counts)} images of {len(split.names)} classes, {said}"
    missing = [item.image_id for item in split.items if not image_exists(images / item.path)]
    if missing:
        yield False, f"{len(missing)} images are not in {images}, the first is {missing[0]}"
    else:
        yield True, f"every image is in {images}"
