"""Names of files and folders that every system takes, each another than those before it."""

import re
from pathlib import PurePath

# What some system does not take in a name: separators, Windows' signs, control characters.
UNFIT = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
LONGEST = 200  # bytes; a number has room after it
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows


class FolderNames:
    """The names in one folder."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        # In lower case, for some systems do not tell cases apart: names, and their last numbers.
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def of(self, name: str) -> str:
        """The name that stands for this one, always the same."""
        if name not in self._of:
            self._of[name] = self.new(name)
        return self._of[name]

    def new(self, name: str) -> str:
        """A name like this one that was not given before."""
        path = PurePath(safe(name))
        found, key = path.name, path.name.casefold()
        number = self._numbers.get(key, 1)
        while found.casefold() in self._taken:
            number += 1
            found = f"{path.stem}_{number}{path.suffix}"
        self._numbers[key] = number
        self._taken.add(found.casefold())
        return found


def safe(name: str) -> str:
    """The name with `_` in the place of what some system refuses or hides."""
    found = UNFIT.sub("_", name).rstrip(" .")
    if found.startswith(".") or not found.strip() or RESERVED.fullmatch(found):
        found = f"_{found.lstrip('.')}"
    path = PurePath(found)
    room = LONGEST - len(path.suffix.encode())
    if len(path.stem.encode()) <= room or room <= 0:
        return found.encode()[:LONGEST].decode(errors="ignore")
    return path.stem.encode()[:room].decode(errors="ignore") + path.suffix
