"""Names of files and folders that several rooms know, and the classes that a folder lists."""

import re
from pathlib import Path

from latteclip.core.errors import DELETE, UserError
from latteclip.core.files import read_object

SPLITS = ("train", "val", "test")
CLASSES = "classes.txt"  # the names of the classes, one per line
# In place of that file: classes that a stage proposes, or the names of the folders.
DISCOVER = "discover"
FOLDERS = "folders"
# Names that systems and network storages put beside users' files: thumbnails, recycle bins.
LITTER = re.compile(
    r"\.|__MACOSX|(@eaDir|@Recycle|@Recently-Snapshot|#recycle|#snapshot|\$RECYCLE\.BIN"
    r"|System Volume Information|lost\+found|Thumbs\.db|ehthumbs\.db|desktop\.ini|Icon\r)$",
    re.IGNORECASE,
)
# The tables of captions, names, class scores and votes, below the results of a dataset.
IMAGES = "images"
GROUPS = "groups"
NAMES = "names"
SCORES = "scores"
# By what a captioner is asked for.
TABLES = {
    IMAGES: "captions/images.parquet",
    GROUPS: "captions/groups.parquet",
    NAMES: "names.parquet",
    SCORES: "class_scores.parquet",
}
LABELLERS = "labellers"  # folder of the tables that one labeller alone has
# Beside the results of a dataset whose classes a stage proposed.
ACTIONS = "classes.json"  # a person's actions
PROPOSAL = "discovery.json"


def labeller_table(name: str) -> str:
    """Return the table of a labeller whose votes a job of its own writes."""
    return f"{LABELLERS}/{name}.parquet"


def is_litter(name: str) -> bool:
    """Return whether a name is that of a system's file or folder, not of a user's."""
    return LITTER.match(name) is not None


def folders_in(place: str | Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without those of systems."""
    names = sorted(path.name for path in Path(place).iterdir() if path.is_dir())
    return [name for name in names if not is_litter(name)]


def lines_of(path: str | Path) -> list[str]:
    """Return the lines of a text file that are not empty, stripped.

    OSError: it cannot be read. UserError: it is not UTF-8, with or without a byte order mark.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid UTF-8 text ({error}); write it again."
        ) from None
    return [line for line in map(str.strip, text.splitlines()) if line]


def edited_classes(folder: str | Path) -> list[str] | None:
    """Return the names in the results' classes.txt if a person wrote or edited it, else None.

    UserError: it is not UTF-8.
    """
    path = Path(folder, CLASSES)
    if not path.is_file():
        return None
    names = lines_of(path)
    return None if names == _proposed(folder) else names


def _proposed(folder: str | Path) -> list[str] | None:
    """Return the names of the classes that the stage wrote."""
    path = Path(folder, PROPOSAL)
    if not path.is_file():
        return None
    classes = read_object(path, ("classes",), DELETE)["classes"]
    return [row["name"] for row in classes]
