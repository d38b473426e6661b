"""Texts of captions: mentions of classes, and who wrote them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

NAMES = 128  # that are looked for at once: the time of more grows faster than their number


def count_mentions(texts: pa.ChunkedArray, classnames: Sequence[str]) -> int:
    """Return how many texts have any of the class names as whole words, in any case."""
    n, no_letter = len(texts), r"[^\pL\pN_]"
    for start in range(0, len(classnames), NAMES):
        names = "|".join(map(re.escape, classnames[start : start + NAMES]))
        pattern = f"(?:^|{no_letter})(?:{names})(?:{no_letter}|$)"
        found = pc.match_substring_regex(texts, pattern, ignore_case=True)
        texts = texts.filter(pc.invert(found))
    return n - len(texts)


def mention(classname: str) -> re.Pattern[str]:
    """Return the pattern that finds a class name as whole words, in any case, in a single text."""
    return re.compile(rf"(?<!\w){re.escape(classname)}(?!\w)", re.IGNORECASE)


def user_file_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the user's file that a CAPTIONS table was made from; None: a model wrote it."""
    captioner = metadata.get("captioner", {})
    if not captioner.get("reads_file"):
        return None
    return str(captioner["groups_file" if "groups" in metadata else "images_file"])


def model_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the model that wrote the captions of a CAPTIONS table; None: the user did."""
    return None if user_file_of(metadata) else metadata.get("captioner", {}).get("model")
