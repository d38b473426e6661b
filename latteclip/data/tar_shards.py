"""Samples of a tar as WebDataset lays them out: `key.jpg` beside `key.cls` or `key.json`.

Headers alone are read, and the parts that hold labels; nothing is unpacked.
"""

import contextlib
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latteclip.core.errors import UserError, first_line
from latteclip.data import tar_files
from latteclip.data.folder_files import IMAGE_SUFFIXES
from latteclip.data.split_files import inside

Label = int | str | None  # a number, a class name, or not known
LABEL = "cls"  # the part that holds the label unless something else is said
MAX_LABEL = 2**20  # bytes of a part that holds a label
MAX_NAME = 1000  # characters
MAX_ENTRIES = 10**7  # of a shard
UNLABELLED = -1  # as a number, by the habit of `datasets`


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard."""

    name: str  # in the shard
    place: str  # in it, see latteclip.data.members
    label: Label


@dataclass(frozen=True, slots=True)
class _Part:
    """One entry of a tar: a part of the sample with its key."""

    key: str
    suffix: str
    place: str
    content: bytes | None  # read of a part that holds a label


def samples(
    shard: Path, image: str | None, label: str | None, skipped: Counter[str]
) -> Iterator[Sample]:
    """The images of a shard in order; samples without one are counted by suffix.

    Args:
        shard: the tar, which must not be compressed.
        image: the suffix of images, for samples with more than one; None: any known one.
        label: the suffix of labels, with ":field" where they are in a field of JSON; None: LABEL.
        skipped: where samples without an image are counted.

    Raises:
        UserError: the shard is damaged, cut off, compressed or unsafe, or a label is not one.
    """
    suffix, _, field = (label or LABEL).partition(":")
    suffix = suffix.lower()  # as those of the files are read
    wanted = {f".{image.lower()}"} if image else IMAGE_SUFFIXES
    with _told(shard):
        for key, group in itertools.groupby(_parts(shard, suffix), lambda part: part.key):
            parts = list(group)
            images = [part for part in parts if f".{part.suffix}" in wanted]
            if len(images) > 1:
                found = ", ".join(part.suffix for part in images)
                raise UserError(
                    f"{shard}: the sample {key!r} has {len(images)} images ({found}); split.image "
                    "of the dataset says which one counts."
                )
            if not images:
                skipped[f".{parts[0].suffix}"] += 1
                continue
            labels = [part.content for part in parts if part.content is not None]
            found_label = _label(labels[0], field, f"{shard}: {key}.{suffix}") if labels else None
            yield Sample(f"{key}.{images[0].suffix}", images[0].place, found_label)


@contextlib.contextmanager
def _told(shard: Path) -> Iterator[None]:
    """What tarfile or the system says of a shard as one sentence."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{shard} is not a whole tar without compression ({first_line(error)}); get it anew, "
            "or decompress it."
        ) from None


def _parts(shard: Path, suffix: str) -> Iterator[_Part]:
    """The files of a shard that belong to a sample; `suffix` is that of labels."""
    entries = tar_files.members(shard, lambda n: None, skim=True)
    for number, (entry, content) in enumerate(entries, start=1):
        if number > MAX_ENTRIES:
            raise UserError(f"{shard} has more than {MAX_ENTRIES} entries; divide it.")
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            raise UserError(f"{shard} holds {entry.name[:80]!r}, which is no plain file: refused.")
        if len(entry.name) > MAX_NAME:
            raise UserError(f"{shard} holds a name of over {MAX_NAME} characters: refused.")
        folder, slash, name = inside(entry.name.removeprefix("./"), shard).rpartition("/")
        key, dot, kind = name.partition(".")
        if not key or not dot:  # hidden, or of no sample
            continue
        kind, held = kind.lower(), None
        if kind == suffix:
            with content() as file:
                held = file.read(MAX_LABEL + 1)
        yield _Part(folder + slash + key, kind, f"{entry.offset_data}+{entry.size}", held)


def _label(content: bytes, field: str, where: str) -> Label:
    """What a part says: an integer, a class name, or a field of JSON that is one of these."""
    if len(content) > MAX_LABEL:
        raise UserError(f"{where} has more than {MAX_LABEL} bytes, and is no label.")
    try:
        text = content.decode("utf-8").strip()
        value = json.loads(text)[field] if field else text
    except (ValueError, LookupError, TypeError, RecursionError):
        what = f"JSON with the field {field!r}" if field else "text in UTF-8"
        raise UserError(f"{where} is not {what}; split.label says where labels are.") from None
    if isinstance(value, str) and not field and value.removeprefix("-").isdecimal():
        value = int(value[:20]) if value.isascii() else value
    return checked_label(value, where)


def checked_label(value: object, where: str) -> Label:
    """A value as a label, None where it says that there is none; UserError if it cannot be one."""
    if value is None or value == UNLABELLED or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where} is {str(value)[:80]!r}, neither a number nor a class name.")
    return value
