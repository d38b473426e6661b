"""Names of files and folders that mean something in a folder of images."""

import re
from pathlib import Path

from latteclip.core.errors import UserError

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
