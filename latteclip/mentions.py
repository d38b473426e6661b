"""Whether a text names a class: the one definition behind every such share of captions."""

import re
from collections.abc import Callable, Sequence


def mentions(classnames: Sequence[str]) -> Callable[[str], bool]:
    """A test of texts: whether one holds any of the class names as whole words, in any case."""
    names = sorted(map(re.escape, classnames), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)", re.IGNORECASE)
    return lambda text: pattern.search(text) is not None
