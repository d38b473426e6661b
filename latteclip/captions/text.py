"""Texts of captions: mentions of classes, and who wrote them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def mentions(classnames: Sequence[str]) -> Callable[[str], bool]:
    """Return a test whether a text has any of the class names as whole words, in any case."""
    pattern = re.compile(rf"(?<!\w){_any_of(classnames)}(?!\w)", re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


def _any_of(names: Sequence[str]) -> str:
    """Return a regular expression of all names that has their common beginnings only once.

    If the names merely stood side by side, all thousand would be tried at every word of a caption.
    """
    rests: dict[str, list[str]] = {}
    for name in filter(None, names):
        rests.setdefault(name[0], []).append(name[1:])
    branches = [re.escape(first) + _any_of(rest) for first, rest in rests.items()]
    if "" in names:  # one of them ends here
        branches.append("")
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def user_file_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the user's file that a CAPTIONS table was made from; None: a model wrote it."""
    captioner = metadata.get("captioner", {})
    if captioner.get("engine") != "file":
        return None
    return str(captioner["groups_file" if "groups" in metadata else "images_file"])


def model_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the model that wrote the captions of a CAPTIONS table; None: the user did."""
    return None if user_file_of(metadata) else metadata.get("captioner", {}).get("model")
