"""Mentions of classes in captions."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

NAMES = 128  # names in one search: the time of more grows faster than their number


def count_mentions(texts: pa.ChunkedArray, classnames: Sequence[str]) -> int:
    """Return how many texts have any class name, or its plural, as whole words in any case."""
    n = len(texts)
    no_letter = r"[^\pL\pN_]"
    for start in range(0, len(classnames), NAMES):
        names = "|".join(map(_with_plural, classnames[start : start + NAMES]))
        pattern = f"(?:^|{no_letter})(?:{names})(?:{no_letter}|$)"
        mentions = pc.match_substring_regex(texts, pattern, ignore_case=True)
        texts = texts.filter(pc.invert(mentions))
    return n - len(texts)


def mention(classname: str) -> re.Pattern[str]:
    """Return the pattern that finds a class name, or its plural, as whole words in any case."""
    return re.compile(rf"(?<!\w)(?:{_with_plural(classname)})(?!\w)", re.IGNORECASE)


def _with_plural(classname: str) -> str:
    """Return the pattern of a name and of its regular English plurals: cats, boxes, berries."""
    plurals = f"{re.escape(classname)}(?:e?s)?"
    if classname.lower().endswith("y"):
        plurals += f"|{re.escape(classname[:-1])}ies"
    return plurals
