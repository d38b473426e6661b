"""A folder of a few images of each class that are not in the dataset: <class>/*.jpg."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.file_names import folders_in
from latteclip.core.files import readable
from latteclip.core.terminal import one_line
from latteclip.data.folder_files import image_files

KEY = "split.examples"


class Example(NamedTuple):
    """An image of a class."""

    path: str
    classname: str


def class_names(folder: str | Path) -> list[str]:
    """Return the names of the class folders, sorted. UserError: there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{KEY} {folder} is not a folder; correct the path.")
    with readable():
        names = folders_in(root)
    if not names:
        raise UserError(
            f"{KEY} {folder} has no folders; put the images of each class into a folder with the "
            "class's name."
        )
    return names


def find_examples(
    folder: str | Path, classnames: Sequence[str], replacements: Mapping[str, str]
) -> list[Example]:
    """Return the images below a folder with their classes.

    UserError: a class folder is of no class, of the same class as another one, or without images,
    or an image is in no class folder.
    """
    loose = image_files(folder, deep=False)
    if loose:
        raise UserError(
            f"{one_line(loose[0])} is in no class folder of {KEY}; move it into one."
        )
    examples: list[Example] = []
    folder_of: dict[str, str] = {}
    for written in class_names(folder):
        place = Path(folder, written)
        name = clean_classname(written, replacements)
        if name not in classnames:
            likely = one_line(suggestion(name, classnames))
            raise UserError(f"{KEY}: {one_line(place)} is not a class; {likely}")
        if name in folder_of:
            raise UserError(
                f"{KEY}: the folders {folder_of[name]!r} and {written!r} of {folder} are both of "
                f"the class {name!r}; join them."
            )
        folder_of[name] = written
        images = image_files(place, deep=True)
        if not images:
            raise UserError(
                f"{KEY}: {one_line(place)} holds no image; add some or remove the folder."
            )
        examples += [Example(str(image), name) for image in images]
    return examples
