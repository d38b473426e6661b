"""Whether a text names a class: the one definition behind every share of captions that do."""

import re
from collections.abc import Callable, Sequence


def mentions(classnames: Sequence[str]) -> Callable[[str], bool]:
    """A test whether a text holds any of the class names as whole words, in upper or lower case."""
    pattern = re.compile(rf"(?<!\w){_any_of(classnames)}(?!\w)", re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


def _any_of(names: Sequence[str]) -> str:
    """A regular expression of all names that has their common beginnings only once.

    If the names merely stood side by side, all thousand would be tried at every word of a caption.
    """
    rests: dict[str, list[str]] = {}
    for name in filter(None, names):
        rests.setdefault(name[0], []).append(name[1:])
    branches = [re.escape(first) + _any_of(rest) for first, rest in rests.items()]
    if "" in names:  # one of them ends here
        branches.append("")
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
