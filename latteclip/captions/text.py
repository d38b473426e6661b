"""Mentions of classes in captions."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

NAMES = 128  # that are looked for at once: the time of more grows faster than their number


def count_mentions(texts: pa.ChunkedArray, classnames: Sequence[str]) -> int:
    """Return how many texts have any of the class names as whole words, in any case."""
    n = len(texts)
    no_letter = r"[^\pL\pN_]"
    for start in range(0, len(classnames), NAMES):
        names = "|".join(map(re.escape, classnames[start : start + NAMES]))
        pattern = f"(?:^|{no_letter})(?:{names})(?:{no_letter}|$)"
        found = pc.match_substring_regex(texts, pattern, ignore_case=True)
        texts = texts.filter(pc.invert(found))
    return n - len(texts)


def mention(classname: str) -> re.Pattern[str]:
    """Return the pattern that finds a class name as whole words, in any case, in a single text."""
    return re.compile(rf"(?<!\w){re.escape(classname)}(?!\w)", re.IGNORECASE)
