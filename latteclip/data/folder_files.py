"""List the files of a user's folder that an index reads, detect changes, and find examples.

Imports nothing heavy, since the workflow compares at each start.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from latteclip.config.keys import SplitSection
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import CLASSES, LITTER, folders_in
from latteclip.core.terminal import one_line

IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jpeg", ".jpg", ".png", ".ppm")
) | {".tif", ".tiff", ".webp"}
LINKED = 2  # levels on which links to folders are followed, as class folders may be
EXAMPLES = "split.examples"  # the key of a folder with a few images of each class


def stamp(state: os.stat_result) -> str:
    """Return size and time of a file, which no change of its content leaves as they were."""
    return f"{state.st_size} {state.st_mtime_ns}"


def inside(name: str, source: Path) -> str:
    """Return a name in a list, shard or folder if it is a path inside the folder of images."""
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts
    is_utf8 = name.encode(errors="ignore").decode() == name
    if not name or leads_out or "\0" in name or not is_utf8:
        raise UserError(
            f"{source}: {name!r} is not a path in UTF-8 inside the folder of images (split.images "
            "sets that folder)."
        )
    return name


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case, such as .jpg."""
    return os.path.splitext(name)[1].lower()


def walk(
    folder: str | Path, linked: int = LINKED, prefix: str = ""
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files in a folder and below it, with their paths in it, always in one order.

    Litter is left out. Links to folders are followed on `linked` levels.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if LITTER.match(entry.name):
            continue
        name = prefix + entry.name
        if not entry.is_dir():
            yield name, entry
        elif linked > 0 or not entry.is_symlink():
            yield from walk(entry.path, linked - 1, f"{name}/")


def image_files(folder: str | Path) -> list[str]:
    """Return the image files in a folder and below it by their paths in it, sorted."""
    names = [name for name, _ in walk(folder) if suffix_of(name) in IMAGE_SUFFIXES]
    return sorted(names, key=lambda name: name.split("/"))


def other_files(folder: str | Path) -> Counter[str]:
    """Count the files in a folder and below it that are no images, but classes.txt, by suffix."""
    suffixes = (suffix_of(name) for name, entry in walk(folder) if entry.name != CLASSES)
    others = (suffix for suffix in suffixes if suffix not in IMAGE_SUFFIXES)
    return Counter(suffix if suffix.isascii() else "other" for suffix in others)


def state(folder: str | None, split: SplitSection) -> str:
    """Return a digest of the names, sizes and times of the files that an index reads.

    With `split.kind` "folders" these are images and classes.txt, otherwise all files. Those of a
    folder that a rule makes (None) do not count. The files that `split` names may lie elsewhere.
    """
    result = hashlib.sha256()
    for name in filter(None, (split.file, split.class_list, *split.lists.values())):
        place = os.path.join(folder or "", name)
        if (folder or os.path.isabs(name)) and os.path.isfile(place):
            result.update(os.fsencode(f"{name}\0{stamp(os.stat(place))}\0"))
    for name, entry in walk(folder) if folder else ():
        counts = suffix_of(name) in IMAGE_SUFFIXES or split.kind != "folders"
        if (counts or name == CLASSES) and entry.is_file():
            result.update(os.fsencode(f"{name}\0{stamp(entry.stat())}\0"))
    return result.hexdigest()


def link(folder: str, place: str) -> None:
    """Let the link `place` lead to a folder, or raise UserError.

    An index names its images by the link, so that a folder that moved changes no path.
    """
    target = folder
    if not os.path.isabs(folder):  # then the link still leads there when both move
        target = os.path.relpath(folder, os.path.realpath(os.path.dirname(place)))
    if os.path.islink(place) and os.readlink(place) == target:
        return
    temporary = f"{place}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, place)
    except OSError as error:
        raise UserError(
            f"{place} cannot be a link to {folder} ({error.strerror}); run the workflow in a "
            "folder whose disk has links."
        ) from None


def linked(place: str) -> str:
    """Return the folder to which a link leads, or the folder itself if it is no link."""
    if not os.path.islink(place):
        return place
    return os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))


def find_examples(
    folder: str | Path, classnames: Sequence[str], replacements: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return the images below a folder of examples, <class>/*.jpg, with the names of their classes.

    UserError: a folder is of no class, or there are no images.
    """
    examples: list[tuple[str, str]] = []
    for written in folders_in(folder):
        place = Path(folder, written)
        name = clean_classname(written, replacements)
        if name not in classnames:
            likely = one_line(suggestion(name, classnames))
            raise UserError(f"{EXAMPLES}: {one_line(place)} is not a class; {likely}")
        examples += [(str(place / image), name) for image in image_files(place)]
    if not examples:
        raise UserError(
            f"{EXAMPLES} {folder} has no images in folders; put the images of each class into a "
            "folder with the class's name."
        )
    return examples
