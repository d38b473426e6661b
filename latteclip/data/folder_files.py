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
from latteclip.core.files import CLASSES, folders_in, is_litter
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


def _entries(
    folder: str, *, deep: bool, linked: int = 0, prefix: str = ""
) -> Iterator[tuple[str, str, os.DirEntry[str]]]:
    """Yield names, suffixes and entries of files in one order, by links on `linked` levels."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    folders = []
    for entry in ordered:
        if is_litter(entry.name):
            continue
        if not entry.is_dir():
            yield prefix + entry.name, os.path.splitext(entry.name)[1].lower(), entry
        elif deep and (linked > 0 or not entry.is_symlink()):
            folders.append(entry)
    for entry in folders:
        name = f"{prefix}{entry.name}/"
        yield from _entries(entry.path, deep=True, linked=linked - 1, prefix=name)


def files(folder: str, kind: str) -> Iterator[tuple[str, str]]:
    """Yield names and stamps of the files that an index of a folder reads, always in one order.

    With `split.kind` "folders" these are images and classes.txt, otherwise all files.
    """
    for name, suffix, entry in _entries(folder, deep=True, linked=LINKED):
        counts = suffix in IMAGE_SUFFIXES or name == CLASSES or kind != "folders"
        if counts and entry.is_file():
            yield name, stamp(entry.stat())


def image_files(
    folder: str | Path, skipped: Counter[str] | None = None, *, deep: bool
) -> list[Path]:
    """Return the image files in a folder, or also below it, sorted by path, without litter.

    Other files but classes.txt are counted in `skipped` by suffix in lower case, "" where they have
    none.
    """
    paths = []
    for name, suffix, entry in _entries(os.fspath(folder), deep=deep):
        if suffix in IMAGE_SUFFIXES:
            paths.append(Path(folder, name))
        elif skipped is not None and entry.name != CLASSES:
            skipped[suffix if suffix.isascii() else "other"] += 1
    return sorted(paths)


def state(folder: str | None, split: SplitSection) -> str:
    """Return a digest of the names, sizes and times of the files that an index reads.

    Those of a folder that a rule makes (None) do not count. The files that the section `split`
    names may lie elsewhere.
    """
    result = hashlib.sha256()
    for name in filter(None, (split.file, split.class_list, *split.lists.values())):
        place = os.path.join(folder or "", name)
        if (folder or os.path.isabs(name)) and os.path.isfile(place):
            result.update(os.fsencode(f"{name}\0{stamp(os.stat(place))}\0"))
    for file in files(folder, split.kind) if folder else ():
        result.update(os.fsencode("\0".join(file) + "\0"))
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


def class_names(folder: str | Path) -> list[str]:
    """Return the names of the class folders of examples, sorted. UserError: there are none."""
    names = folders_in(folder)
    if not names:
        raise UserError(
            f"{EXAMPLES} {folder} has no folders; put the images of each class into a folder with "
            "the class's name."
        )
    return names


def find_examples(
    folder: str | Path, classnames: Sequence[str], replacements: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return the images below a folder of examples, <class>/*.jpg, with the names of their classes.

    UserError: a folder is of no class, or has no images.
    """
    examples: list[tuple[str, str]] = []
    for written in class_names(folder):
        place = Path(folder, written)
        name = clean_classname(written, replacements)
        if name not in classnames:
            likely = one_line(suggestion(name, classnames))
            raise UserError(f"{EXAMPLES}: {one_line(place)} is not a class; {likely}")
        images = image_files(place, deep=True)
        if not images:
            raise UserError(
                f"{EXAMPLES}: {one_line(place)} holds no image; add some or remove the folder."
            )
        examples += [(str(image), name) for image in images]
    return examples
