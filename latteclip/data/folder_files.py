"""Know a user's folder again: a digest of its files, a link to it, and examples of its classes.

The workflow computes the digest at each start.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from latteclip.config.keys import SplitSection
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import CLASSES, folders_in
from latteclip.core.terminal import one_line
from latteclip.data.images import (
    IMAGE_SUFFIXES,
    image_files,
    stamp,
    suffix_of,
    walk,
)

EXAMPLES = "split.examples"  # the key of a folder with a few images of each class


def state(folder: str | None, split: SplitSection) -> str:
    """Return a digest of the names, sizes and times of the files that an index reads.

    With `split.kind` "folders" these are images and classes.txt, otherwise all files. Those of a
    folder that a rule makes (None) do not count. The files that `split` names may lie elsewhere,
    and the folders of examples, which name classes.
    """
    examples = folders_in(split.examples) if split.examples else []
    result = hashlib.sha256("".join(f"{name}\0" for name in examples).encode())
    for name in filter(
        None, (split.file, split.class_list, *split.lists.values())
    ):
        place = os.path.join(folder or "", name)
        if (folder or os.path.isabs(name)) and os.path.isfile(place):
            result.update(os.fsencode(f"{name}\0{stamp(place)}\0"))
    for name, entry in walk(folder) if folder else ():
        counts = suffix_of(name) in IMAGE_SUFFIXES or split.kind != "folders"
        if (counts or name == CLASSES) and entry.is_file():
            result.update(os.fsencode(f"{name}\0{stamp(entry)}\0"))
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
    target = os.readlink(place)
    if os.path.isabs(target):
        return target
    # Its .. leads out of the folder where the link lies, to which another link may lead.
    above = os.path.realpath(os.path.dirname(place))
    return os.path.relpath(os.path.join(above, target))


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
            raise UserError(
                f"{EXAMPLES}: {one_line(place)} is not a class; {likely}"
            )
        examples += [(str(place / image), name) for image in image_files(place)]
    if not examples:
        raise UserError(
            f"{EXAMPLES} {folder} has no images in folders; put the images of each class into a "
            "folder with the class's name."
        )
    return examples
